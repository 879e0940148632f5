"""The recipe's prepare section: what loads, and every problem named at once."""

from typing import Any

import pytest

from lrc.config import recipe_from_dict, recipe_to_dict
from lrc.data_config import SourceConfig
from lrc.errors import ConfigError
from tests.least_recipe import LEAST


def test_sources_load_as_typed_entries_and_survive_a_round_trip() -> None:
    source = {"path": "a.jsonl", "filters": ["int_score >= 4"], "max_tokens": 5}
    recipe = recipe_from_dict({**LEAST, "prepare": {"sources": [source]}}, origin="test")
    assert recipe.prepare.sources == [SourceConfig(path="a.jsonl", filters=("int_score >= 4",), max_tokens=5)]
    assert recipe_from_dict(recipe_to_dict(recipe), origin="test") == recipe


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        ({"sources": [{"path": "a", "keep": 0.0}]}, r"prepare\.sources\[0\]\.keep must lie in 0\.\.1"),
        ({"sources": [{"path": "a", "max_tokens": 0}]}, r"prepare\.sources\[0\]\.max_tokens must be at least 1"),
        ({"sources": [{"path": "a", "filters": ["score"]}]}, "a filter must look like key >= value, found 'score'"),
        ({"workers": 0}, r"prepare\.workers must be at least 1"),
        ({"max_bad_share": 2.0}, r"prepare\.max_bad_share must lie in 0\.\.1"),
        ({"held_out_share": 1.0}, r"prepare\.held_out_share must lie in 0\.\.1, 1 left out, found 1\.0"),
        ({"sources": [{"path": "a", "kind": "chat"}], "held_out_share": 0.1}, "no source is of kind text"),
        ({"max_document_bytes": 0}, r"prepare\.max_document_bytes must be at least 1"),
        ({"decontaminate_words": 0}, r"prepare\.decontaminate_words must be at least 1"),
        ({"executor": "slurm"}, r"prepare\.cluster\.partition must be set"),
        ({"cluster": {"hours": 0}}, r"prepare\.cluster\.hours must be at least 1"),
        ({"executor": "moon"}, "executor"),
        ({"sources": [{"kind": "text"}]}, "path"),
        ({"sources": [{"path": "a", "kind": "poem"}]}, "kind"),
        ({"sources": [{"path": "a", "pth": "b"}]}, "pth"),
    ],
)
def test_what_cannot_work_is_refused(prepare: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        recipe_from_dict({**LEAST, "prepare": prepare}, origin="test")
