"""`lrc convert`: in which order it checks, merges and publishes, and what it says meanwhile."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.progress import Progress

from lrc.config import StudentConfig
from lrc.errors import CheckpointError, ConfigError, NumericsError
from lrc.export import parity
from lrc.verbs import convert as module
from lrc.verbs.convert import convert
from lrc.verbs.sources import locate_teacher
from lrc.verbs.train import train
from tests.tiny import teacher_folder, tiny_recipe

FACTS = {
    "passed": True,
    "in_memory": {"max_abs_difference": 1.0, "relative_difference": 2.34e-6},
    "after_reload": {"max_abs_difference": 2.0, "relative_difference": 0.0119},
    "rounding": 0.0234,
    "dtype": "bfloat16",
}


class Stages:
    """Stands for the three stages; notes what each was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.source = SimpleNamespace(
            teacher_folder=Path("/teachers/t"), notes=("9 tensors were ignored.", "Odd."), renamed=False
        )
        self.parity: dict[str, Any] | Exception = FACTS
        monkeypatch.setattr(module, "read_source", self.read_source)
        monkeypatch.setattr(module, "write_student", self.write_student)
        monkeypatch.setattr(module, "check_parity", self.check_parity)

    def read_source(self, checkpoint: Path, **options: Any) -> Any:
        self.calls.append(("read_source", {"checkpoint": checkpoint, **options}))
        return self.source

    def write_student(self, source: Any, draft: Path, **options: Any) -> None:
        assert source is self.source
        self.calls.append(("write_student", options))
        (draft / "model.safetensors").write_text("weights")
        for done in (1, 2):
            options["progress"](done, 2)

    def check_parity(self, source: Any, draft: Path, *, progress: Callable[[int, int], None]) -> dict[str, Any]:
        assert source is self.source
        assert (draft / "model.safetensors").read_text() == "weights"
        self.calls.append(("check_parity", {"published": (draft.parent / "out").exists()}))
        if isinstance(self.parity, Exception):
            raise self.parity
        progress(3, 3)
        return self.parity

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(monkeypatch)


def test_the_student_is_published_with_its_parity_after_the_check(
    tmp_path: Path, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert convert(Path("checkpoint-2"), out) == out
    assert stages.names == ["read_source", "write_student", "check_parity"]
    assert stages.calls[2][1] == {"published": False}
    assert json.loads((out / "parity.json").read_text()) == FACTS
    assert sorted(path.name for path in out.iterdir()) == ["model.safetensors", "parity.json"]
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[:2] == ["note: 9 tensors were ignored.", "note: Odd."]
    shown = ["merge 1/2 tensors", "merge 2/2 tensors", "parity 3/3 parts"]
    assert [line.split("  ")[0] for line in lines[2:5]] == shown
    assert lines[5:] == [
        "parity: in memory 2.3e-06, after reload 1.2e-02 of the logits' scale; rounding to bfloat16 2.3e-02"
    ]


def test_what_was_asked_for_reaches_the_stages(tmp_path: Path, stages: Stages) -> None:
    student = StudentConfig(hidden_size=8)
    settings: dict[str, Any] = {"dtype": "float16", "max_shard_bytes": 9}
    convert(Path("c"), tmp_path / "out", teacher="t", student=student, trust_remote_code=True, **settings)
    asked = {"checkpoint": Path("c"), "teacher": "t", "student": student, "trust_remote_code": True}
    assert stages.calls[0][1] == {**asked, "locate": locate_teacher}
    assert {key: stages.calls[1][1][key] for key in settings} == settings


def test_a_dry_run_reads_the_checkpoint_and_writes_nothing(
    tmp_path: Path, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(Path("checkpoint-2"), tmp_path / "out", dry_run=True) == tmp_path / "out"
    assert stages.names == ["read_source"]
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.endswith("dry run: checkpoint-2 fits /teachers/t: good\n")


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_target_in_the_way_is_refused_before_the_checkpoint_is_read(
    tmp_path: Path, stages: Stages, dry_run: bool
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    (tmp_path / "file").write_text("mine")
    for target, overwrite in ((tmp_path / "out", False), (tmp_path / "file", True)):
        with pytest.raises(ConfigError, match="The output"):
            convert(Path("c"), target, overwrite=overwrite, dry_run=dry_run)
    assert stages.names == []


@pytest.mark.parametrize("out", ["run", "run/train/checkpoint-2", "teachers", "teachers/t"])
def test_neither_checkpoint_nor_teacher_is_replaced(tmp_path: Path, stages: Stages, out: str) -> None:
    checkpoint, teacher = tmp_path / "run" / "train" / "checkpoint-2", tmp_path / "teachers" / "t"
    for folder in (checkpoint, teacher):
        folder.mkdir(parents=True)
    stages.source.teacher_folder = teacher
    with pytest.raises(ConfigError, match=r"must not be or hold what is read|holds t, but nothing that tells it"):
        convert(checkpoint, tmp_path / out, overwrite=True)
    assert "write_student" not in stages.names


@pytest.mark.parametrize("failure", [NumericsError("not the same"), OSError(28, "No space left on device")])
def test_an_earlier_student_stays_where_the_new_one_fails(tmp_path: Path, stages: Stages, failure: Exception) -> None:
    (tmp_path / "out").mkdir()
    for name in ("old", "parity.json"):
        (tmp_path / "out" / name).write_text("old")
    stages.parity = failure
    with pytest.raises((NumericsError, CheckpointError)):
        convert(Path("c"), tmp_path / "out", overwrite=True)
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "old", "parity.json"}
    stages.parity = FACTS
    convert(Path("c"), tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "old").exists()


def test_a_checkpoint_that_a_kill_left_set_aside_is_converted_and_never_replaced(
    tmp_path: Path, stages: Stages
) -> None:
    named, aside = tmp_path / "run" / "checkpoint-2", tmp_path / "run" / ".checkpoint-2.replaced"
    aside.mkdir(parents=True)
    with pytest.raises(ConfigError, match="must not be or hold what is read"):
        convert(named, tmp_path / "run", overwrite=True)
    assert stages.names == []
    convert(named / "model.safetensors", tmp_path / "out")
    assert stages.calls[0][1]["checkpoint"] == aside / "model.safetensors"
    assert aside.is_dir()


def test_a_teacher_that_has_moved_can_be_named(tmp_path: Path) -> None:
    checkpoint = train(tiny_recipe(tmp_path, start__method="random", train__max_steps=1, data__held_out=None))
    shutil.move(tmp_path / "teacher", tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"neither\. If the teacher lies elsewhere now.* --teacher"):
        convert(checkpoint, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"neither\.$"):
        convert(checkpoint, tmp_path / "out", teacher=str(tmp_path / "nowhere"))
    out = convert(checkpoint, tmp_path / "out", teacher=str(tmp_path / "moved"))
    assert json.loads((out / "parity.json").read_text())["passed"] is True


@pytest.mark.parametrize("dtype", ["float8", "bf16", ""])
def test_an_unknown_dtype_is_refused_before_anything_is_written(tmp_path: Path, stages: Stages, dtype: str) -> None:
    with pytest.raises(ConfigError, match="bfloat16"):
        convert(Path("c"), tmp_path / "out", dtype=dtype, dry_run=True)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_failure_leaves_no_bar_on_the_terminal(
    tmp_path: Path, stages: Stages, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Progress] = []
    start = Progress.start

    def start_noted(self: Progress) -> None:
        bars.append(self)
        start(self)

    def fail_midway(source: Any, draft: Path, **options: Any) -> None:
        options["progress"](1, 3)
        raise failure

    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(Progress, "start", start_noted)
    monkeypatch.setattr(module, "write_student", fail_midway)
    with pytest.raises((KeyboardInterrupt, CheckpointError)):
        convert(Path("c"), tmp_path / "out")
    running = [bar for bar in bars if bar.live.is_started]
    for bar in running:
        bar.stop()
    assert len(bars) == 1
    assert running == []


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_large_teacher_that_is_checked_whole_is_told_before_the_work(
    tmp_path: Path, stages: Stages, dry_run: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.source.teacher_folder, stages.source.renamed = teacher_folder(tmp_path / "teacher"), True
    monkeypatch.setattr(parity, "WHOLE_BYTES", 0)
    convert(Path("c"), tmp_path / "out", dry_run=dry_run)
    lines = capsys.readouterr().err.splitlines()
    assert lines[2].startswith(f"note: the files of {tmp_path / 'teacher'} don't hold the tensors")
