"""`lrc export --as gguf`: bad input is refused with exit code 2 before the converter is fetched."""

import zipfile
from pathlib import Path

import pytest

from lrc.cli import main
from lrc.export import gguf as gguf_export
from lrc.verbs import export_gguf as verb
from tests.export.bpe_student import bpe_student
from tests.tiny import teacher_folder


@pytest.fixture(autouse=True)
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*, report: object) -> Path:
        pytest.fail("the converter was fetched")

    monkeypatch.setattr(verb, "gguf_converter", fail)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["export", *arguments]) == 2
    return capsys.readouterr().err


def test_dry_run_checks_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = bpe_student(tmp_path / "student")
    assert main(["export", str(student), str(tmp_path / "out"), "--as", "gguf", "--dry-run"]) == 0
    assert "can be written as f16: good" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        (
            "gemma3_text",
            {"query_pre_attn_scalar": 6},
            "as f16 by its sizes; class not known to be taken by llama.cpp; the converter decides",
        ),
        ("mistral", {}, "tried as a llama, not as a mistral; the converter decides, lrc export STUDENT OUT --as llama"),
    ],
)
def test_dry_run_calls_no_class_good_that_llama_cpp_is_not_known_to_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, changes: dict[str, int], said: str
) -> None:
    student = bpe_student(tmp_path / "student", family, **changes)
    assert main(["export", str(student), str(tmp_path / "out"), "--as", "gguf", "--dry-run"]) == 0
    told = capsys.readouterr().err
    assert said in told
    assert ": good" not in told


def test_what_can_not_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, out = bpe_student(tmp_path / "student", hidden_size=48, head_dim=12), tmp_path / "out"
    arguments = [str(student), str(out), "--as", "gguf", "--type"]
    assert "Use f16" in refused([*arguments, "q4_k_m"], capsys)
    assert "lrc export" in refused([str(bpe_student(tmp_path / "qwen2", "qwen2")), *arguments[1:], "f32"], capsys)
    (out / "kept").mkdir(parents=True)
    assert "--overwrite" in refused([*arguments, "f32"], capsys)
    assert "must hold a config.json" in refused([str(out), str(tmp_path / "new"), "--as", "gguf"], capsys)


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_a_file_of_another_type_is_kept_and_another_folder_advised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    student, out = bpe_student(tmp_path / "student"), tmp_path / "out"
    out.mkdir()
    for name in ("student-Q8_0.gguf", "gguf_parity.json"):
        (out / name).write_text("there")
    said = refused([str(student), str(out), "--as", "gguf", "--type", "f16", *flags], capsys)
    assert "holds student-Q8_0.gguf, and a folder holds one file and its proof" in said
    assert f"Name another folder, such as {out}-f16." in said
    assert "--overwrite" not in said
    assert sorted(path.name for path in out.iterdir()) == ["gguf_parity.json", "student-Q8_0.gguf"]
    (out / "student-Q8_0.gguf").rename(out / "student-F16.gguf")
    replace = ["export", str(student), str(out), "--as", "gguf", "--type", "f16", "--overwrite", "--dry-run"]
    assert main(replace) == 0


def test_type_is_for_gguf_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = teacher_folder(tmp_path / "student")
    arguments = [str(student), str(tmp_path / "out"), "--as", "int8", "--type", "q8_0"]
    assert "--type is for --as gguf" in refused(arguments, capsys)


def test_path_of_the_file_goes_to_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    converter = tmp_path / "converter.zip"
    with zipfile.ZipFile(converter, "w") as archive:
        archive.writestr("conversion/__init__.py", "")
        archive.writestr("conversion/base.py", "class TextModel:\n    def get_vocab_base_pre(self, tokenizer): ...\n")
        body = "open(sys.argv[sys.argv.index('--outfile') + 1], 'w').write('GGUF')"
        archive.writestr("convert_hf_to_gguf.py", f"import sys\ndef main():\n    {body}\n")
    monkeypatch.setattr(verb, "gguf_converter", lambda *, report: converter)
    monkeypatch.setattr(gguf_export, "has_llama_cpp", lambda: False)
    student = bpe_student(tmp_path / "student")
    assert main(["export", str(student), str(tmp_path / "out"), "--as", "gguf", "--type", "f32"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'out' / 'student-F32.gguf'}\n"
    assert "NOT verified" in told.err


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_damaged_tokenizer_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    student = bpe_student(tmp_path / "student")
    (student / "tokenizer.json").write_text("{")
    said = refused([str(student), str(tmp_path / "out"), "--as", "gguf", *flags], capsys)
    assert f"The tokenizer of {student} can't be loaded" in said
