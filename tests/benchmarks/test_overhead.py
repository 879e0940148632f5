"""The overhead benchmark tells by its exit code whether the loop costs more than it may."""

import json
from pathlib import Path

import pytest

from benchmarks import overhead


@pytest.mark.parametrize(("share", "code"), [(0.0199, 0), (0.0201, 1)])
def test_an_overhead_above_two_per_cent_fails(
    tmp_path: Path, share: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overhead, "measure", lambda steps: {"seconds_per_step": 1.0, "overhead_share": share})
    monkeypatch.setattr("sys.argv", ["overhead.py", "--out", str(tmp_path / "out.json")])
    assert overhead.main() == code
    captured = capsys.readouterr()
    assert f"| overhead_share | {share:.2%} |" in captured.out
    assert ("must be at most 2%" in captured.err) == (code == 1)
    assert json.loads((tmp_path / "out.json").read_text())["overhead_share"] == share
