"""`lrc export --as int8`, as a command."""

import json
from pathlib import Path

import pytest

from lrc.cli import main
from tests.tiny import teacher_folder

pytest.importorskip("torchao")


def test_dry_run_then_export_then_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, out = teacher_folder(tmp_path / "student"), tmp_path / "out"
    arguments = ["export", str(student), str(out), "--as", "int8"]
    assert main([*arguments, "--dry-run"]) == 0
    assert not out.exists()
    (student / "sft.json").write_text('{"steps": 3}\n')
    assert main(arguments) == 0
    assert (out / "sft.json").read_text() == '{"steps": 3}\n'
    assert json.loads((out / "int8_parity.json").read_text())["passed"]
    capsys.readouterr()
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["export", str(out), str(tmp_path / "again"), "--as", "int8"]) == 2
    assert "must hold plain weights" in capsys.readouterr().err
