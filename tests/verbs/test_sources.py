"""What a recipe names is handed on as it is, except the demo's own teacher and texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrc.config import load_recipe
from lrc.embedded.teacher import TEACHER_NAME
from lrc.errors import ConfigError
from lrc.verbs import demo, sources
from lrc.verbs.progress import say
from lrc.verbs.sources import locate_data, locate_teacher

Calls = list[tuple[Any, ...]]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Collect what would be fetched."""
    calls: Calls = []

    def teacher(name: str, *, report: Callable[[str], None]) -> Path:
        calls.append(("teacher", name, report))
        return Path("/cache/teacher")

    def text_folder(*, report: Callable[[str], None]) -> Path:
        calls.append(("text", report))
        return Path("/cache/text")

    monkeypatch.setattr(sources, "embedded_teacher", teacher)
    monkeypatch.setattr(sources, "embedded_text_folder", text_folder)
    return calls


@pytest.mark.parametrize("name", ["owner/model", "/folder/of/model", "./embedded", "embedded", "Embedded:x", ""])
def test_other_names_are_left_as_they_are_and_fetch_nothing(name: str, fetched: Calls) -> None:
    assert locate_teacher(name) == name
    assert locate_data(name) == name
    assert fetched == []


def test_the_embedded_teacher_is_fetched_and_its_folder_named(fetched: Calls) -> None:
    assert locate_teacher("embedded:smollm2-135m-instruct") == "/cache/teacher"
    assert fetched == [("teacher", TEACHER_NAME, say)]


@pytest.mark.parametrize(
    ("name", "path"),
    [("embedded:train", "/cache/text/train.jsonl"), ("embedded:held-out", "/cache/text/held_out.jsonl")],
)
def test_an_embedded_text_is_fetched_and_its_file_named(name: str, path: str, fetched: Calls) -> None:
    assert locate_data(name) == path
    assert fetched == [("text", say)]


@pytest.mark.parametrize("name", ["embedded:", "embedded:train", "embedded:smollm2", "embedded:smollm2-135m-instruct "])
def test_an_unknown_embedded_teacher_is_refused_with_the_known_one(name: str, fetched: Calls) -> None:
    with pytest.raises(ConfigError) as caught:
        locate_teacher(name)
    assert repr(name) in str(caught.value)
    assert "embedded:smollm2-135m-instruct" in str(caught.value)
    assert fetched == []


@pytest.mark.parametrize("name", ["embedded:", "embedded:held_out", "embedded:train.jsonl", f"embedded:{TEACHER_NAME}"])
def test_an_unknown_embedded_text_is_refused_with_the_known_ones(name: str, fetched: Calls) -> None:
    with pytest.raises(ConfigError) as caught:
        locate_data(name)
    for part in (repr(name), "embedded:train", "embedded:held-out"):
        assert part in str(caught.value)
    assert fetched == []


def test_the_demos_recipe_names_what_is_embedded(fetched: Calls) -> None:
    recipe = load_recipe(Path(demo.__file__).with_name("demo.yaml"))
    assert locate_teacher(recipe.teacher) == "/cache/teacher"
    assert locate_data(recipe.data.train) == "/cache/text/train.jsonl"
    assert locate_data(str(recipe.data.held_out)) == "/cache/text/held_out.jsonl"
    assert len(fetched) == 3
