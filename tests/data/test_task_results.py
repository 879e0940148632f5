"""What other tasks read of a finished one."""

import json
from pathlib import Path

from lrc.data.task_results import Finished, read_finished, result_path, shard_name


def test_a_finished_task_has_counts_and_another_has_none(tmp_path: Path) -> None:
    assert (shard_name(7), result_path(tmp_path, 7).name) == ("00007", "00007.json")
    assert read_finished(tmp_path, 7) is None
    result_path(tmp_path, 7).write_text(json.dumps({"rows": 9, "bad_rows": 2, "tokens": 30, "more": "x"}))
    assert read_finished(tmp_path, 7) == Finished(rows=9, bad_rows=2, tokens=30)
