"""Arenas that run at once: one writes at a time, and nothing that another wrote is lost."""

import threading
from pathlib import Path

import pytest

from benchmarks.arena.alone import alone
from benchmarks.arena.picked_rates import read_rates, record_rate


def test_a_rate_that_another_process_writes_meanwhile_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "root" / "rates.json"
    assert read_rates(path) == {}
    record_rate(path, "tiny", "red", {"rate": 1.0})
    with alone(path):
        thread = threading.Thread(target=record_rate, args=(path, "tiny", "default", {"rate": 2.0}))
        thread.start()
        thread.join(timeout=0.5)
        assert thread.is_alive()
        path.write_text(path.read_text().replace("1.0", "3.0"))
    thread.join(timeout=60)
    assert read_rates(path) == {"tiny": {"red": {"rate": 3.0}, "default": {"rate": 2.0}}}
    assert f"waiting for another process that makes {path}" in capsys.readouterr().err


def test_the_lock_is_given_back_by_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), alone(tmp_path / "a"):
        raise ValueError("broken")
    with alone(tmp_path / "a"):
        assert not (tmp_path / "a").exists()
