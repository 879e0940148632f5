"""`lrc report` writes the whole folder or nothing."""

import json
import os
import shlex
from pathlib import Path
from threading import Thread

import pytest

from lrc.errors import CheckpointError, ConfigError, DataError
from lrc.report.read_run import read_run
from lrc.verbs import report as module
from lrc.verbs.report import report
from tests.report.synthetic_run import write_run


def write_scored_run(run: Path) -> Path:
    """Write a run that has a scorecard only, the quickest to draw."""
    write_run(run, num_steps=1, num_layers=2)
    for name in ("metrics.jsonl", "start.json"):
        (run / "train" / name).unlink()
    return run


def test_whole_run_gives_page_facts_and_plots(tmp_path: Path) -> None:
    run = write_run(tmp_path / "demo", num_steps=4, log_steps=2, num_layers=3)
    page = report(run)
    assert page == run / "report/report.html"
    assert {path.name for path in page.parent.iterdir()} == {
        "README.md",
        "report.html",
        "clone_terms.png",
        "effective_rank.png",
        "held_out.png",
        "losses.png",
        "rank_history.png",
        "start_errors.png",
    }
    html = page.read_text("utf-8")
    assert html.startswith("<!DOCTYPE html>")
    assert html.count("data:image/png;base64,") == 12
    for path in page.parent.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"({path.name})" in (page.parent / "README.md").read_text("utf-8")
    assert sorted(path.name for path in run.iterdir()) == ["convert", "evaluate", "report", "sft", "train"]


def test_older_report_is_replaced_as_a_whole(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path)
    (run / "report").mkdir()
    (run / "report/stale.png").write_bytes(b"old")
    report(run)
    assert not (run / "report/stale.png").exists()
    first = (run / "report/report.html").read_bytes()
    report(run)
    assert (run / "report/report.html").read_bytes() == first


def test_what_is_no_reports_is_not_deleted(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path)
    page = report(run)
    page.with_name("notes.md").write_text("mine")
    before = page.read_bytes()
    with pytest.raises(DataError, match=r"holds notes\.md, which is no report's"):
        report(run)
    assert (page.read_bytes(), page.with_name("notes.md").read_text()) == (before, "mine")


def test_damaged_run_leaves_the_older_report(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path)
    page = report(run)
    before = page.read_bytes()
    results = run / "evaluate/results.json"
    results.write_text(results.read_text("utf-8")[:-20], encoding="utf-8")
    with pytest.raises(DataError, match=r"results.json, line \d+: "):
        report(run)
    assert page.read_bytes() == before


def test_failed_write_leaves_the_older_report_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_scored_run(tmp_path)
    before = report(run).read_bytes()
    write_bytes = Path.write_bytes

    def refuse_markdown(path: Path, content: bytes) -> int:
        if path.suffix == ".md":
            raise OSError(28, os.strerror(28))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", refuse_markdown)
    with pytest.raises(DataError, match=r"No space left on device.*unchanged"):
        report(run)
    assert (run / "report/report.html").read_bytes() == before
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_failed_swap_brings_the_older_report_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_scored_run(tmp_path)
    before = report(run).read_bytes()
    rename = Path.rename

    def refuse_new(path: Path, target: Path) -> Path:
        if path.name.endswith(".new"):
            raise OSError(13, os.strerror(13))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(DataError, match="Permission denied"):
        report(run)
    assert (run / "report/report.html").read_bytes() == before
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_two_reports_at_once_leave_one_of_them_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "report"
    module._replace_folder(folder, {"report.html": b"old"})
    second = Thread(target=module._replace_folder, args=(folder, {"report.html": b"second", "losses.png": b"2"}))
    rename = Path.rename

    def rename_beside(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if path == folder and second.ident is None:
            second.start()
            second.join(0.3)
        return moved

    monkeypatch.setattr(Path, "rename", rename_beside)
    module._replace_folder(folder, {"report.html": b"first"})
    second.join(10)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"report.html": b"second", "losses.png": b"2"}
    assert list(tmp_path.iterdir()) == [folder]


def test_linked_report_folder_is_replaced_behind_its_link(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path / "demo")
    (tmp_path / "elsewhere").mkdir()
    (run / "report").symlink_to(tmp_path / "elsewhere")
    report(run)
    assert (run / "report").is_symlink()
    assert (tmp_path / "elsewhere/report.html").is_file()


def test_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path)
    (run / "report").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="is a file"):
        report(run)
    assert (run / "report").read_text("utf-8") == "mine"


def test_empty_run_says_what_must_run_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lrc train"):
        report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("teacher", "published"), [("owner/teacher", True), ("models/llama", False), ("../llama", False)]
)
def test_only_a_teacher_in_the_hubs_cache_is_named_as_the_hubs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str, published: bool
) -> None:
    run = write_scored_run(tmp_path)
    path = run / "train/recipe.yaml"
    path.write_text(path.read_text("utf-8").replace("embedded:smollm2-135m-instruct", teacher), "utf-8")
    assert teacher in path.read_text("utf-8")

    def cached(name: str, file: str) -> str | None:
        return str(tmp_path / file) if (name, file) == ("owner/teacher", "config.json") else None

    monkeypatch.setattr(module, "try_to_load_from_cache", cached)
    report(run)
    assert (f"base_model: {teacher}" in (run / "report/README.md").read_text("utf-8")) is published


def test_page_follows_the_numbers(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path)
    path = run / "evaluate/results.json"
    results = json.loads(path.read_text("utf-8"))
    results["student"]["bits_per_byte"] = 1.2345678
    path.write_text(json.dumps(results), encoding="utf-8")
    assert '<data value="1.2345678">1.235</data>' in report(run).read_text("utf-8")


def test_the_page_warns_like_the_card_where_the_scores_are_another_models(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path)
    assert "another model than this student" not in report(run).read_text("utf-8")
    (run / "convert/config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert "Scored was convert, another model than this student." in report(run).read_text("utf-8")
    assert "Scored was `convert`, another model than this student." in (run / "report/README.md").read_text("utf-8")


def test_a_student_that_is_not_there_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_scored_run(tmp_path / "run")
    monkeypatch.setattr(module, "draw_plots", lambda data: pytest.fail("plots are drawn"))
    with pytest.raises(CheckpointError, match=r"--student must name a model folder, but .*convrt holds no config"):
        report(run, student=run / "convrt")
    with pytest.raises(ConfigError, match="--private says how --push-to-hub makes a repository"):
        report(run, private=True)
    assert not (run / "report").exists()


def test_the_command_that_scores_a_student_asks_for_what_was_scored(tmp_path: Path) -> None:
    run = write_scored_run(tmp_path / "a run")
    path = run / "evaluate/results.json"
    results = json.loads(path.read_text("utf-8"))
    results["tasks"] |= {"data": "/data/tasks", "limit": 20}
    results["tasks"]["scores"][1]["task"] = "mbpp"
    path.write_text(json.dumps(results), encoding="utf-8")
    words = shlex.split(module._score_command(read_run(run), run / "sft"))
    assert words[:5] == ["lrc", "evaluate", str(run / "sft"), "--out", str(run / "evaluate")]
    flags = ["--held-out", "held_out.jsonl", "--tasks", "arc_easy,mbpp", "--data-dir", "/data/tasks", "--limit", "20"]
    assert words[5:14] == [*flags, "--allow-code"]
    assert words[14:] == ["--teacher", results["teacher"]["name"], "--overwrite"]
    path.write_text(json.dumps({**results, "teacher": None, "tasks": None}), encoding="utf-8")
    words = shlex.split(module._score_command(read_run(run), run / "sft"))
    assert words[5:] == ["--held-out", "held_out.jsonl", "--overwrite"]
