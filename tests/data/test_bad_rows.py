"""A source is given up only when nothing that may come can bring it back below the limit."""

import json
from pathlib import Path

import pytest

from lrc.data.bad_rows import BadRowWatch
from lrc.data.documents import InputFile, Tally
from lrc.data.source_rows import ReadShare
from lrc.data.task_results import result_path
from lrc.data_config import SourceConfig
from lrc.errors import DataError


def is_given_up(
    folder: Path, *, bad: int, rows: int, share: float, rank: int = 0, limit: float = 0.1, budget: int | None = None
) -> bool:
    """Watch file `rank` of four of 1,000 bytes, of which the last is of another source."""
    files = tuple(
        InputFile(source=int(number == 3), path=f"{number}.jsonl", num_bytes=1000, version="") for number in range(4)
    )
    source = SourceConfig(path="*.jsonl", max_tokens=budget)
    watch = BadRowWatch(files=files, source=source, limit=limit, folder=folder, rank=rank)
    tally = Tally(rows=rows, num_bad=bad, bad=[(1, "no JSON")], read=ReadShare(share))
    try:
        watch(tally)
    except DataError:
        return True
    return False


def finish(folder: Path, rank: int, *, rows: int, bad: int, tokens: int = 5) -> None:
    result_path(folder, rank).write_text(json.dumps({"rows": rows, "bad_rows": bad, "tokens": tokens}))


@pytest.mark.parametrize(("rows", "given_up"), [(999, True), (1001, False)])
def test_at_the_end_the_limit_is_that_of_the_last_stage(tmp_path: Path, rows: int, given_up: bool) -> None:
    finish(tmp_path, 1, rows=0, bad=0)
    finish(tmp_path, 2, rows=0, bad=0)
    assert is_given_up(tmp_path, bad=100, rows=rows, share=1.0) is given_up


@pytest.mark.parametrize(("bad", "given_up"), [(2101, False), (2102, True)])
def test_what_is_not_read_may_hold_ten_times_as_many_rows_all_good(tmp_path: Path, bad: int, given_up: bool) -> None:
    finish(tmp_path, 1, rows=2000, bad=0)  # half a file of three is not read, nor the third: rows 3,000 of 1,500 bytes
    assert is_given_up(tmp_path, bad=bad - 2101 + 3300, rows=1000, share=0.5) is given_up


def test_one_bad_file_of_many_is_no_bad_source(tmp_path: Path) -> None:
    assert not is_given_up(tmp_path, bad=1000, rows=1000, share=1.0)
    assert is_given_up(tmp_path, bad=1000, rows=1000, share=1.0, limit=0.04)
    finish(tmp_path, 1, rows=1000, bad=1000)
    assert is_given_up(tmp_path, bad=1000, rows=1000, share=1.0, limit=0.14)


def test_files_that_may_lie_behind_the_budget_are_not_judged(tmp_path: Path) -> None:
    worst = {"bad": 1000, "rows": 1000, "share": 1.0, "rank": 1, "limit": 0.01}
    assert is_given_up(tmp_path, **worst)  # type: ignore[arg-type]
    assert not is_given_up(tmp_path, **worst, budget=100)  # type: ignore[arg-type]  # file 0 may fill it
    finish(tmp_path, 0, rows=10, bad=0, tokens=100)
    assert not is_given_up(tmp_path, **worst, budget=100)  # type: ignore[arg-type]  # it does
    finish(tmp_path, 2, rows=10, bad=10)
    assert is_given_up(tmp_path, **worst, budget=101)  # type: ignore[arg-type]


def test_the_error_says_what_holds_what_was_found_and_where(tmp_path: Path) -> None:
    file = InputFile(source=0, path="a.jsonl", num_bytes=1000, version="")
    watch = BadRowWatch(files=(file,), source=SourceConfig(path="*.jsonl"), limit=0.1, folder=tmp_path, rank=0)
    with pytest.raises(DataError, match=r"\*\.jsonl: at most 10\.00% .* found 30 of the 40 .*a\.jsonl:7: no JSON"):
        watch(Tally(rows=40, num_bad=30, bad=[(7, "no JSON")], read=ReadShare(0.9)))
