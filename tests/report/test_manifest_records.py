"""The sources of a manifest, of lrc prepare or of another tool."""

from pathlib import Path

import pytest

from lrc.errors import DataError
from lrc.report.manifest_records import DataSource, read_sources
from tests.report.synthetic_run import manifest_values, write_json


def test_sources_are_read(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", manifest_values())
    assert read_sources(tmp_path / "manifest.json")[0] == DataSource(
        path="hf://datasets/owner/corpus/data/*.parquet", kind="text", rows=1000, kept=640, tokens=812_345
    )


def test_a_manifest_of_another_tool_has_none(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", {"format": "lrc-shards/1", "shards": []})
    assert read_sources(tmp_path / "manifest.json") == ()


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    values = manifest_values()
    values["sources"][1]["tokens"] = -1
    write_json(tmp_path / "manifest.json", values)
    with pytest.raises(DataError, match=r"under 'sources'\[1\]: 'tokens' must be a whole number"):
        read_sources(tmp_path / "manifest.json")
