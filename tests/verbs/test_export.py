"""`lrc export`: what can't be exported is refused with exit code 2, and nothing that exists is touched."""

from pathlib import Path
from typing import Any

import pytest

from lrc.cli import main
from tests.tiny import teacher_folder


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def refused(root: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    before = snapshot(root)
    capsys.readouterr()
    assert main(["export", *arguments]) == 2
    assert snapshot(root) == before
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [("qwen3", {}, "k_norm, q_norm"), ("mistral", {"sliding_window": 8}, "look back 8 tokens only")],
)
def test_an_unsupported_class_is_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    student = teacher_folder(tmp_path / "student", family, **changes)
    text = refused(tmp_path, [str(student), str(tmp_path / "out"), "--as", "llama"], capsys)
    assert said in text
    assert "lrc serve-check" in text


def test_an_output_that_exists_needs_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, out = teacher_folder(tmp_path / "student", "qwen2"), tmp_path / "out"
    out.mkdir()
    (out / "kept").write_text("here")
    arguments = [str(student), str(out), "--as", "llama"]
    assert "holds kept, but nothing" in refused(tmp_path, [*arguments, "--overwrite"], capsys)
    (out / "parity.json").write_text("{}")
    assert "Use --overwrite" in refused(tmp_path, arguments, capsys)
    assert main(["export", *arguments, "--overwrite"]) == 0
    assert not (out / "kept").exists()


@pytest.mark.parametrize("form", ["llama", "gguf", "int8"])
@pytest.mark.parametrize("out", ["run/student", "run"])
def test_a_student_is_never_replaced_by_its_export(
    tmp_path: Path, form: str, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    student = teacher_folder(tmp_path / "run" / "student", "qwen2")
    arguments = [str(student), str(tmp_path / out), "--as", form, "--overwrite", "--dry-run"]
    assert "must not be or hold what is read" in refused(tmp_path, arguments, capsys)


@pytest.mark.parametrize("name", ["missing", "empty", "file", "/nowhere/student"])
def test_what_is_no_student_folder_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert "must" in refused(tmp_path, [str(tmp_path / name), str(tmp_path / "out"), "--as", "llama"], capsys)


def test_weights_that_are_not_there_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = teacher_folder(tmp_path / "student", "qwen2")
    (student / "model.safetensors").unlink()
    text = refused(tmp_path, [str(student), str(tmp_path / "out"), "--as", "llama"], capsys)
    assert "must hold model.safetensors" in text


def test_an_unknown_form_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["export", str(tmp_path), str(tmp_path / "out"), "--as", "onnx"])
    assert caught.value.code == 2
    assert "llama" in capsys.readouterr().err
