"""A tqdm bar becomes about ten lines where there is no terminal."""

import io
import sys
import time

import pytest
from tqdm import tqdm

from lrc.verbs.tqdm_lines import requests_as_lines


def test_a_bar_of_requests_becomes_lines_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with requests_as_lines("student"):
        for _ in tqdm(range(3), mininterval=0):  # other work
            pass
        for _ in tqdm(range(200), desc="Running loglikelihood requests", mininterval=0):
            time.sleep(0.0005)
        for _ in tqdm(range(2), desc="Running generate_until requests", mininterval=0):
            time.sleep(0.002)
        print("a warning", file=sys.stderr)
    lines = stream.getvalue().splitlines()
    assert lines[-1] == "a warning"
    assert all(line.startswith("student ") for line in lines[:-1])
    first = [line for line in lines if "/200 requests" in line]
    assert 10 <= len(first) <= 12
    assert first[-1].startswith("student 200/200 requests  ")
    assert "it/s" in first[-1]
    assert "ETA 00:00" in first[-1]
    assert any("2/2 requests" in line for line in lines)


def test_a_terminal_keeps_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with requests_as_lines("student"):
        assert sys.stderr is stream
