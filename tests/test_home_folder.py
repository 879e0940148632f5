"""`~/` at the front of a text becomes the home folder; everything else stays as it is."""

from typing import Any

import pytest

from lrc.data_config import SourceConfig
from lrc.home_folder import expand_home


@pytest.mark.parametrize(
    ("value", "expanded"),
    [
        ("~/a/*.jsonl", "/home/me/a/*.jsonl"),
        ("~", "~"),
        ("~other/a", "~other/a"),
        ("a/~/b", "a/~/b"),
        ("hf://datasets/a/~/b", "hf://datasets/a/~/b"),
        (3, 3),
        (None, None),
        (["~/a", "b"], ["/home/me/a", "b"]),
        (("~/a", 1.5), ("/home/me/a", 1.5)),
        ([SourceConfig(path="~/a", keep=0.5)], [SourceConfig(path="/home/me/a", keep=0.5)]),
    ],
)
def test_only_a_leading_tilde_and_slash_stand_for_the_home_folder(
    value: Any, expanded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home(value) == expanded
    assert type(expand_home(value)) is type(value)
