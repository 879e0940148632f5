"""What would go to the hub is listed exactly, offline; the upload is one commit of just that."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationDelete, ModelCard

from lrc.errors import CheckpointError, ConfigError
from lrc.models.folder import weights_hash
from lrc.verbs import push as module
from lrc.verbs.push import check_repo, list_uploads, push
from lrc.verbs.report import report
from tests.report.synthetic_run import parity_values, sft_values, write_json
from tests.tiny import teacher_folder
from tests.verbs.test_report import write_scored_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A scored run with a converted student, the one that was scored."""
    run = write_scored_run(tmp_path / "run")
    teacher_folder(run / "convert")
    scored(run, run / "convert")
    (run / "convert" / "README.md").write_text("an older card")
    (run / "convert" / ".cache").mkdir()
    (run / "convert" / ".cache" / "lock").write_text("")
    (run / "convert" / "recipe.yaml").write_text("teacher: /home/someone\n")
    return run


def scored(run: Path, student: Path) -> None:
    """Let the results be those of this student."""
    path = run / "evaluate/results.json"
    results = json.loads(path.read_text("utf-8"))
    results["student"]["name"] = results["tasks"]["models"]["student"] = str(student)
    write_json(path, results)


class FakeApi:
    """Records what would go to the hub."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, dict[str, Any]]] = []
        self.error: Exception | None = None
        self.files: list[str] = []
        self.is_private: bool | None = None
        """None: the repository is not there yet."""

    def repo_exists(self, repo: str) -> bool:
        return self.is_private is not None

    def repo_info(self, repo: str) -> Any:
        return type("Info", (), {"private": self.is_private})()

    def create_repo(self, repo: str, **options: Any) -> None:
        if self.error:
            raise self.error
        self.calls.append(("create_repo", repo, options))

    def list_repo_files(self, repo: str) -> list[str]:
        return self.files

    def create_commit(self, repo: str, operations: list[Any], **options: Any) -> Any:
        self.calls.append(("create_commit", repo, {operation.path_in_repo: operation for operation in operations}))
        return type("Commit", (), {"commit_url": f"https://hub/{repo}/commit/1"})()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    api = FakeApi()
    monkeypatch.setattr(module, "HfApi", lambda: api)
    return api


def uploaded(run: Path) -> set[str]:
    files = {path.name for path in (run / "convert").iterdir() if path.is_file()}
    return (files - {"recipe.yaml"}) | {"README.md", "effective_rank.png"}


def test_a_dry_run_lists_every_file_with_its_size_and_touches_nothing(
    run: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    report(run, push_to_hub="me/small", dry_run=True)
    captured = capsys.readouterr()
    listed = {line.split()[-1]: int(line.split()[0].replace(",", "")) for line in captured.out.splitlines()}
    assert set(listed) == uploaded(run)
    assert listed["model.safetensors"] == (run / "convert/model.safetensors").stat().st_size
    assert listed["README.md"] != len("an older card")
    assert f"{len(listed)} files would be uploaded to me/small; nothing was" in captured.err
    assert api.calls == []
    assert not (run / "report").exists()


def test_the_upload_is_one_commit_of_what_was_listed(
    run: Path, api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    report(run, push_to_hub="me/small", private=True)
    (created, committed) = api.calls
    assert created == ("create_repo", "me/small", {"private": True, "exist_ok": True})
    assert committed[1] == "me/small"
    assert set(committed[2]) == uploaded(run)
    card = committed[2]["README.md"].path_or_fileobj
    assert card == (run / "report/README.md").read_bytes()
    assert b'from_pretrained("me/small")' in card
    assert committed[2]["config.json"].path_or_fileobj == str(run / "convert/config.json")
    assert "Uploaded: https://hub/me/small/commit/1" in capsys.readouterr().err


def test_nothing_is_uploaded_unless_a_repository_is_named(run: Path, api: FakeApi) -> None:
    report(run)
    assert api.calls == []
    assert "STUDENT_FOLDER" in (run / "report/README.md").read_text("utf-8")


def test_the_fine_tuned_student_goes_first_and_another_can_be_named(run: Path, tmp_path: Path, api: FakeApi) -> None:
    teacher_folder(run / "sft", seed=1)
    scored(run, run / "sft")
    report(run, push_to_hub="me/small")
    assert api.calls[1][2]["config.json"].path_or_fileobj == str(run / "sft/config.json")
    assert (run / "sft/sft.json").is_file()
    assert "sft.json" not in api.calls[1][2]
    assert b"fine-tuned on chats" in api.calls[1][2]["README.md"].path_or_fileobj
    assert b"Scored was" not in api.calls[1][2]["README.md"].path_or_fileobj
    other = teacher_folder(tmp_path / "other")
    report(run, push_to_hub="me/small", student=other)
    assert api.calls[3][2]["config.json"].path_or_fileobj == str(other / "config.json")
    assert b"fine-tuned on chats" not in api.calls[3][2]["README.md"].path_or_fileobj


def card_of(run: Path) -> ModelCard:
    return ModelCard.load(run / "report/README.md")


@pytest.mark.parametrize("tasks_alone", [False, True])
def test_scores_of_another_folder_are_named_and_kept_from_the_hub(
    run: Path, capsys: pytest.CaptureFixture[str], tasks_alone: bool
) -> None:
    if tasks_alone:
        path = run / "evaluate/results.json"
        results = json.loads(path.read_text("utf-8"))
        write_json(path, {key: results[key] for key in ("tasks", "versions", "machine")})
    report(run)
    assert len(card_of(run).data.eval_results) == 2
    assert "Scored was" not in card_of(run).text
    teacher_folder(run / "sft", seed=1)
    capsys.readouterr()
    report(run)
    assert card_of(run).data.eval_results is None
    text = card_of(run).text
    assert "**Scored was `convert`, another model than this student.**" in text
    assert "| arc_easy |" in text
    assert "picks the teacher's most likely next token" not in text
    assert "67.27 M" not in text.split("## Scores")[0]
    said = capsys.readouterr().err
    assert f"scores of {run / 'convert'}, not of {run / 'sft'}" in said
    text_flags = "" if tasks_alone else " --held-out held_out.jsonl"
    teacher = "owner/teacher" if tasks_alone else "/home/someone/.cache/lrc/smollm2-135m-instruct"
    flags = f"{text_flags} --tasks arc_easy,logiqa --teacher {teacher} --overwrite"
    assert f"Score it: lrc evaluate {run / 'sft'} --out {run / 'evaluate'}{flags}\n" in said


def test_scores_belong_to_the_weights_that_the_results_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "evaluate/results.json"
    results = json.loads(path.read_text("utf-8"))
    write_json(path, {**results, "student_hash": weights_hash(run / "convert")})
    report(run, student=Path(shutil.copytree(run / "convert", tmp_path / "copy")))
    assert len(card_of(run).data.eval_results) == 2
    teacher_folder(run / "convert", seed=1)
    capsys.readouterr()
    report(run)
    assert card_of(run).data.eval_results is None
    assert f"scores of other weights that were in {run / 'convert'}, not of those there now" in capsys.readouterr().err


def test_an_export_is_named_by_its_own_class_and_fine_tuning(run: Path, tmp_path: Path) -> None:
    teacher_folder(run / "sft", "qwen2")
    report(run)
    assert "A plain model folder of the model type `qwen2`" in card_of(run).text
    export = teacher_folder(tmp_path / "export")
    report(run, student=export)
    assert "A plain model folder of the model type `llama`" in card_of(run).text
    assert "fine-tuned" not in card_of(run).text
    write_json(export / "sft.json", {**sft_values(), "steps": 77})
    config = json.loads((export / "config.json").read_text())
    write_json(export / "config.json", {**config, "quantization_config": {"quant_method": "torchao"}})
    report(run, student=export)
    assert "After distillation: fine-tuned on chats with `lrc sft`." in card_of(run).text
    assert "| Fine-tuning | 77 steps on " in card_of(run).text
    assert "loads with `torchao` installed" in card_of(run).text


def test_folders_are_compared_by_where_they_lie(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.parent / "link").symlink_to(run, target_is_directory=True)
    monkeypatch.chdir(run.parent)
    scored(run, Path("link/../run/convert"))
    report(Path("link"))
    assert len(card_of(run).data.eval_results) == 2


@pytest.mark.parametrize("repo", ["small", "a/b/c", "me/sm all", "me/..x", ""])
def test_a_name_that_is_none_is_refused_before_anything(run: Path, api: FakeApi, repo: str) -> None:
    with pytest.raises(ConfigError, match="must be OWNER/NAME"):
        report(run, push_to_hub=repo)
    assert api.calls == []
    assert not (run / "report").exists()


def test_a_run_without_a_student_is_refused(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"convert must be a model folder.*Run lrc convert"):
        report(run, push_to_hub="me/small", dry_run=True)


def test_a_student_that_failed_its_parity_check_is_refused(run: Path) -> None:
    write_json(run / "convert/parity.json", parity_values(passed=False))
    with pytest.raises(CheckpointError, match="failed its parity check"):
        report(run, push_to_hub="me/small", dry_run=True)


def test_a_refusal_of_the_hub_is_explained(api: FakeApi) -> None:
    api.error = PermissionError("401\nUnauthorized")
    with pytest.raises(CheckpointError, match=r"me/small could not be written: 401 Unauthorized .*hf auth login"):
        push("me/small", {"README.md": b"x"}, private=False)


def test_an_existing_repository_keeps_its_visibility_without_the_flag(api: FakeApi) -> None:
    push("me/small", {"README.md": b"x"}, private=False)
    assert api.calls[0][2]["private"] is None


def test_private_is_refused_for_a_public_repository_before_anything_is_uploaded(api: FakeApi) -> None:
    api.is_private = False
    with pytest.raises(ConfigError, match=r"--private must name .* but me/small is public\..* nothing was uploaded"):
        push("me/small", {"README.md": b"x"}, private=True)
    assert api.calls == []
    push("me/small", {"README.md": b"x"}, private=False)
    api.is_private = True
    push("me/small", {"README.md": b"x"}, private=True)
    assert [name for name, *_ in api.calls] == ["create_repo", "create_commit"] * 2


def test_weights_of_an_earlier_push_go_with_the_same_commit(api: FakeApi) -> None:
    stale = {"model.safetensors", "model-00003-of-00003.safetensors"}
    kept = {".gitattributes", "adapter_model.safetensors", "notes.md", "onnx/model.safetensors"}
    index = "model.safetensors.index.json"
    api.files = sorted(stale | kept | {index})
    push("me/small", {index: b"{}", "model-00001-of-00002.safetensors": b"x"}, private=False)
    operations = api.calls[1][2]
    assert {name for name, what in operations.items() if isinstance(what, CommitOperationDelete)} == stale
    assert set(operations) == stale | {index, "model-00001-of-00002.safetensors"}


def test_files_keep_their_places(tmp_path: Path) -> None:
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "a.txt").write_text("a")
    assert list_uploads(tmp_path, {"README.md": b"x"}) == {"README.md": b"x", "extra/a.txt": tmp_path / "extra/a.txt"}
    check_repo("owner/name")
