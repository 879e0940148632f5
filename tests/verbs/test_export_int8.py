"""`lrc export --as int8`, as a command."""

import json
from pathlib import Path

import pytest

from lrc.cli import main
from lrc.verbs import export_int8 as verb
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


def test_a_full_disk_at_the_facts_of_the_fine_tuning_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = teacher_folder(tmp_path / "student")

    def fail(folder: Path, draft: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verb, "carry_sft_facts", fail)
    assert main(["export", str(student), str(tmp_path / "out"), "--as", "int8"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
