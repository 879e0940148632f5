"""`scripts/full_chain.sh` with a stand-in for Python: its stages, what is scored, and a line at each end of a stage."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from lrc.evaluation.task_names import SEED

SCRIPT = Path(__file__).parents[1] / "scripts" / "full_chain.sh"
STAND_IN = """#!/usr/bin/env bash
echo "called: $*"
[[ "$*" != *fail-here* ]]
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with what later stages look for, and the stand-in beside it."""
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "run" / "train" / "checkpoint-4").mkdir(parents=True)
    return tmp_path / "run"


def chain(run: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the script for a single GGUF type."""
    environment = {
        **os.environ,
        "RUN": str(run),
        "PYTHON": str(run.parent / "python"),
        "GGUF_TYPES": "q8_0",
        **settings,
    }
    return subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, env=environment)


def call(run: Path, stage: str) -> str:
    return (run / "logs" / f"{stage}.log").read_text()


def test_a_stage_says_when_it_begins_and_when_it_ends(run: Path) -> None:
    (run / "gguf-q8_0").mkdir()
    (run / "gguf-q8_0" / "student.gguf").touch()
    done = chain(run)
    lines = re.findall(r"^\[(\d+)/(\d+)\] (\S+) +(\.\.\.|\d+ s) ", done.stdout, re.MULTILINE)
    names = ["train", "convert", "chats", "sft", "evaluate", "mmlu", "gguf-q8_0", "answer"]
    assert [name for _, _, name, _ in lines] == [name for name in names for _ in range(2)]
    assert [int(number) for number, *_ in lines] == [number for number in range(1, 9) for _ in range(2)]
    assert {total for _, total, *_ in lines} == {"8"}
    assert [state == "..." for *_, state in lines] == [True, False] * 8


def test_a_stage_that_fails_ends_the_chain(run: Path) -> None:
    done = chain(run, SFT_ARGS="fail-here")
    assert done.returncode == 1
    assert "[4/8] sft        failed" in done.stderr
    assert "called: -m lrc sft" in done.stderr
    assert not (run / "logs" / "evaluate.log").exists()


def test_every_set_of_the_wheel_is_scored_but_the_one_it_was_tuned_on(run: Path) -> None:
    chain(run)
    (names,) = re.findall(r"--tasks (\S+) ", call(run, "evaluate"))
    assert set(names.split(",")) | {"mmlu"} == {*SEED, "hellaswag"} - {"sciq", "logiqa"}
    assert "--tasks mmlu " in call(run, "mmlu")
    assert "--limit 2 " in call(run, "mmlu")


def test_mmlu_can_be_left_out(run: Path) -> None:
    done = chain(run, MMLU_ITEMS="0")
    assert "[7/7] answer" in done.stdout
    assert not (run / "logs" / "mmlu.log").exists()
