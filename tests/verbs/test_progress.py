"""Progress: a few plain lines where nobody watches, a bar with rate and time left on a terminal."""

import io
import re
import sys
from typing import Any

import pytest

from lrc.verbs import progress
from lrc.verbs.progress import bar_on_terminal, progress_lines, say

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Clock:
    """Stands for the module `time` in `lrc.verbs.progress`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(progress, "time", stopped)
    return stopped


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """What was written, without colours and each frame on a line of its own."""
        return CONTROL.sub("", self.getvalue().replace("\r", "\n"))


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put a terminal in the place of standard error; not as a fixture, after which pytest puts its own there."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return screen


def last_frame(screen: Terminal) -> str:
    return screen.text.strip().splitlines()[-1]


def lines_of(total: int, capsys: pytest.CaptureFixture[str], first: int = 1, **options: Any) -> list[str]:
    with progress_lines("merge", "tensors", **options) as show:
        for done in range(first, total + 1):
            show(done, total)
    return capsys.readouterr().err.splitlines()


def test_a_line_for_the_user_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("held out: good")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "held out: good\n")


@pytest.mark.parametrize(
    ("total", "lines", "shown"),
    [
        (40, 4, [10, 20, 30, 40]),
        (10, 4, [3, 6, 9, 10]),
        (100, 10, list(range(10, 101, 10))),
        (3, 10, [1, 2, 3]),
        (1, 4, [1]),
        (7, 1, [7]),
    ],
)
def test_off_a_terminal_about_so_many_lines_are_printed(
    total: int, lines: int, shown: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    found = lines_of(total, capsys, lines=lines)
    assert [line.split()[1] for line in found] == [f"{done}/{total}" for done in shown]


def test_nothing_done_yet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(0, capsys, first=0) == []
    assert [line.split()[1] for line in lines_of(2, capsys, first=0)] == ["1/2", "2/2"]


def test_a_line_has_the_rate_and_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_lines("merge", "tensors", lines=4) as show:
        show(0, 8)
        clock.now += 8
        show(2, 8)
        clock.now += 192
        show(4, 8)
        clock.now += 7800
        show(6, 8)
        show(8, 8)
    assert capsys.readouterr().err.splitlines() == [
        "merge 2/8 tensors  0.25/s  ETA 0:24",
        "merge 4/8 tensors  0.02/s  ETA 3:20",
        "merge 6/8 tensors  0.00/s  ETA 44:27",
        "merge 8/8 tensors  0.00/s  ETA 0:00",
    ]


def test_off_a_terminal_a_resumed_run_counts_its_own_steps_too(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_lines("sft", "steps", lines=100) as show:
        for done in range(901, 911):
            clock.now += 4
            show(done, 1000)
    assert capsys.readouterr().err.splitlines() == ["sft 910/1000 steps  0.25/s  ETA 6:00"]


def test_no_time_at_all_is_no_division_by_zero(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = lines_of(1, capsys)
    assert line.startswith("merge 1/1 tensors  ")
    assert line.endswith("ETA 0:00")


def test_on_a_terminal_a_bar_shows_the_same(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    with progress_lines("merge", "tensors") as show:
        show(0, 3)
        for done in (1, 2, 3):
            clock.now += 2
            show(done, 3)
    assert re.fullmatch(r"merge .*━ 3/3 tensors  0\.50/s  ETA 0:00:00\s*", last_frame(terminal))
    assert HIDE in terminal.getvalue()
    assert terminal.getvalue().rindex(SHOW) > terminal.getvalue().rindex(HIDE)
    assert sys.stderr is terminal


def test_lines_that_the_work_prints_stay_whole_above_the_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    with bar_on_terminal("train", "steps") as show:
        for done in (1, 2):
            clock.now += 4
            show(done, 2)
            say(f"step {done}: loss 1.25")
    lines = [line.strip() for line in terminal.text.splitlines()]
    assert [line for line in lines if line.startswith("step")] == ["step 1: loss 1.25", "step 2: loss 1.25"]
    assert re.fullmatch(r"train .*━ 2/2 steps  0\.25/s  ETA 0:00:00", lines[-1])
    assert isinstance(sys.stdout, io.StringIO)
    assert sys.stdout.getvalue() == ""


def test_the_rate_of_a_resumed_run_counts_its_own_steps(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    with bar_on_terminal("train", "steps") as show:
        for done in (41, 42):
            clock.now += 4
            show(done, 50)
    assert re.fullmatch(r"train .* 42/50 steps  0\.25/s  ETA .*", last_frame(terminal))


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ZeroDivisionError()])
def test_a_bar_ends_however_its_block_ends(failure: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)

    def fail_midway() -> None:
        with bar_on_terminal("train", "steps") as show:
            show(1, 2)
            raise failure

    with pytest.raises(type(failure)):
        fail_midway()
    assert terminal.getvalue().rindex(SHOW) > terminal.getvalue().rindex(HIDE)
    assert sys.stderr is terminal
    written = terminal.getvalue()
    say("afterwards")
    assert terminal.getvalue() == f"{written}afterwards\n"


def test_off_a_terminal_work_that_prints_its_own_lines_gets_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    with bar_on_terminal("train", "steps") as show:
        for done in (1, 2):
            show(done, 2)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
