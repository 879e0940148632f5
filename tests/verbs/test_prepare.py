"""`lrc prepare` end to end: any worker count and any kill give the same bytes, and damage ends with exit code 2."""

import copy
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datatrove.executor import LocalPipelineExecutor

from lrc.cli import main
from lrc.config import Recipe
from lrc.data.executors import run_here
from lrc.data.stages import Stage
from lrc.errors import ConfigError, DataError
from lrc.training.launch import write_recipe
from lrc.verbs.prepare import prepare
from lrc.verbs.train import train
from tests.data.fake_slurm import install_fake_slurm
from tests.data.raw_sources import prepare_recipe, texts, write_source
from tests.tiny import tiny_recipe

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "recipe.yaml"}


def many_files(root: Path, count: int = 8, rows: int = 30) -> Path:
    folder = root / "raw"
    folder.mkdir()
    for number in range(count):
        write_source(folder / f"{number}.jsonl.gz", texts(rows, rows * number))
    return folder


def sources_of(folder: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(folder), "keep": 0.8, "filters": ["int_score >= 1"], **more}


def command(root: Path, recipe: Recipe, *overrides: str) -> list[str]:
    write_recipe(root / "recipe.yaml", recipe)
    return [sys.executable, "-m", "lrc", "prepare", str(root / "recipe.yaml"), *overrides]


def test_training_reads_what_prepare_wrote(tmp_path: Path) -> None:
    source = {"path": str(write_source(tmp_path / "a.jsonl", texts(60)))}
    recipe = prepare_recipe(tmp_path, source, held_out_share=0.1)
    folder = prepare(recipe)
    assert folder == tmp_path / "run" / "prepare"
    assert "-------- document --------\n<s>document 0 </s>" in (folder / "preview.txt").read_text()
    assert not [path for path in folder.iterdir() if path.suffix == ".held-out"]
    changes = {"data__train": str(folder), "data__held_out": str(folder / "held_out.jsonl"), "train__max_steps": 2}
    assert train(tiny_recipe(tmp_path, **changes)).name == "checkpoint-2"


DEDUPE = {"exact_dedupe": True, "minhash_dedupe": True}


@pytest.mark.parametrize("dedupe", [{}, DEDUPE], ids=["plain", "dedupe"])
def test_any_worker_count_gives_the_same_bytes(tmp_path: Path, dedupe: dict[str, Any]) -> None:
    source = sources_of(many_files(tmp_path), max_tokens=1500)
    dedupe = {**dedupe, "held_out_share": 0.2}
    one = folder_bytes(prepare(prepare_recipe(tmp_path, source, **dedupe)))
    recipe = prepare_recipe(tmp_path, source, **dedupe)
    write_recipe(tmp_path / "recipe.yaml", recipe)
    done = subprocess.run(
        command(tmp_path, recipe, "prepare.workers=3", f"run={tmp_path / 'three'}"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "three" / "prepare")
    assert folder_bytes(tmp_path / "three" / "prepare") == one


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    source = sources_of(many_files(tmp_path, count=40, rows=2000))
    recipe = prepare_recipe(tmp_path, source)
    draft = tmp_path / "killed" / ".prepare"
    child = subprocess.Popen(
        command(tmp_path, recipe, f"run={tmp_path / 'killed'}"),
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while child.poll() is None and not (draft / "00003.json").is_file():
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in draft.glob("0000[0-2].bin")}
    assert len(finished) == 3
    assert not (draft / "00039.json").exists(), "it was not killed midway"
    assert not (tmp_path / "killed" / "prepare").exists()
    again = prepare_recipe(tmp_path, source)
    folder = prepare(Recipe(**{**vars(again), "run": str(tmp_path / "killed")}))
    assert {name: (folder / name).stat().st_mtime_ns for name in finished} == finished  # not written anew
    assert folder_bytes(folder) == folder_bytes(prepare(again))
    assert not draft.exists()


@pytest.mark.parametrize("stage", ["exact-sign", "minhash-buckets"])
def test_a_run_killed_while_it_dedupes_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, stage: str) -> None:
    recipe = prepare_recipe(tmp_path, sources_of(many_files(tmp_path, count=6, rows=300)), **DEDUPE)
    killed = Recipe(**{**vars(recipe), "run": str(tmp_path / "killed")})
    draft = tmp_path / "killed" / ".prepare"
    child = subprocess.Popen(
        command(tmp_path, killed), env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while child.poll() is None and not (draft / "logs" / stage / "completions" / "00001").is_file():
        time.sleep(0.002)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not (draft / "00005.json").exists(), "it was not killed midway"
    assert folder_bytes(prepare(killed)) == folder_bytes(prepare(recipe))


def test_a_source_behind_a_url_gives_the_same_shards(tmp_path: Path) -> None:
    folder = many_files(tmp_path, count=3)
    local = folder_bytes(prepare(prepare_recipe(tmp_path, sources_of(folder))))
    recipe = prepare_recipe(tmp_path, {**sources_of(folder), "path": f"file://{folder}/*.jsonl.gz"})
    remote = folder_bytes(prepare(Recipe(**{**vars(recipe), "run": str(tmp_path / "remote")})))
    assert {name for name in local if local[name] != remote[name]} == {"manifest.json"}  # it names the files
    assert b"file://" in remote["manifest.json"]


def test_a_file_system_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    recipe = prepare_recipe(tmp_path, {"path": str(write_source(tmp_path / "a.jsonl", texts(60)))}, held_out_share=0.1)
    expected = folder_bytes(prepare(recipe))
    monkeypatch.setattr(os, "link", refused)
    assert folder_bytes(prepare(recipe, overwrite=True)) == expected
    assert not (tmp_path / "run" / ".prepare").exists()


def test_ids_behind_a_gap_in_the_vocabulary_are_the_tokenizers_own(tmp_path: Path) -> None:
    recipe = prepare_recipe(tmp_path, {"path": str(write_source(tmp_path / "a.jsonl", texts(9)))})
    path = tmp_path / "teacher" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["d"] = 300  # of 258 tokens
    path.write_text(json.dumps(tokenizer))
    folder = prepare(recipe)
    assert json.loads((folder / "manifest.json").read_text())["largest_id"] == 300
    assert "-------- document --------\n<s>document 0 </s>" in (folder / "preview.txt").read_text()


def test_missing_benchmarks_are_found_before_work_starts(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.jsonl", texts(9))
    recipe = prepare_recipe(tmp_path, {"path": str(path)}, decontaminate=[str(tmp_path / "gone.jsonl")])
    with pytest.raises(DataError, match=r"gone\.jsonl' matches none"):
        prepare(recipe, dry_run=True)


def test_slurm_jobs_are_submitted_and_the_second_call_puts_the_shards_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = sources_of(many_files(tmp_path, count=2))
    expected = folder_bytes(prepare(prepare_recipe(tmp_path, source)))
    install_fake_slurm(tmp_path / "slurm", monkeypatch, waits=True)
    cluster = {"executor": "slurm", "cluster": {"partition": "cpu"}}
    recipe = Recipe(**{**vars(prepare_recipe(tmp_path, source, **cluster)), "run": str(tmp_path / "cluster")})
    draft = prepare(recipe)
    assert draft == tmp_path / "cluster" / ".prepare"
    assert "submitted; the last job is 10" in capsys.readouterr().err
    with pytest.raises(DataError, match="2 of 2 files are not done"):
        prepare(recipe)
    monkeypatch.setenv("FAKE_SLURM_WAITS", "")
    script = draft / "logs" / "tokenise" / "launch_script.slurm"
    subprocess.run(["sbatch", "--export=ALL,RUN_OFFSET=0", script], check=True, env=dict(os.environ))
    folder = prepare(recipe)
    assert folder == tmp_path / "cluster" / "prepare"
    assert folder_bytes(folder) == expected


def test_the_second_call_leaves_alone_what_running_jobs_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake_slurm(tmp_path / "slurm", monkeypatch, waits=True)
    benchmark = write_source(tmp_path / "benchmark.jsonl", [{"question": "one two three"}])
    more = {"decontaminate": [str(benchmark)], "decontaminate_words": 2}
    cluster = {"executor": "slurm", "cluster": {"partition": "cpu"}}
    draft = prepare(recipe := prepare_recipe(tmp_path, sources_of(many_files(tmp_path, count=2)), **more, **cluster))
    (draft / "00001-0123-partial.bin").touch()  # a job is at it
    first = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in draft.rglob("*") if path.is_file()}
    assert {"files.json", "encoder.json", "encoder_backend.json", "benchmarks.index.hashes"} <= {p.name for p in first}
    with pytest.raises(DataError, match="2 of 2 files are not done"):
        prepare(recipe)
    again = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in draft.rglob("*") if path.is_file()}
    assert again == first


def test_tasks_may_run_in_another_folder_than_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(tmp_path / "a.jsonl", texts(9))
    write_source(tmp_path / "b.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    sources = [{"path": "a.jsonl"}, {"path": "b.jsonl", "kind": "chat"}]
    recipe = prepare_recipe(tmp_path, *sources, exact_dedupe=True)
    recipe = Recipe(**{**vars(recipe), "run": "run", "teacher": "teacher"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    def run_elsewhere(stage: Stage, folder: Path, *, workers: int) -> None:
        executor = LocalPipelineExecutor(stage.pipeline, stage.tasks, 1, str((folder / "logs" / stage.name).absolute()))
        with monkeypatch.context() as there:
            there.chdir(tmp_path / "elsewhere")
            for rank in range(stage.tasks):
                copy.deepcopy(executor)._run_for_rank(rank)

    monkeypatch.setattr("lrc.verbs.prepare.run_here", run_elsewhere)
    manifest = json.loads((prepare(recipe) / "manifest.json").read_text())
    assert [source["files"][0]["path"] for source in manifest["sources"]] == ["a.jsonl", "b.jsonl"]
    assert [source["kept"] for source in manifest["sources"]] == [9, 1]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_there_are_as_many_workers_as_cores_are_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def recorded(stage: Stage, folder: Path, *, workers: int) -> None:
        asked.append(workers)
        run_here(stage, folder, workers=1)

    monkeypatch.setattr("lrc.verbs.prepare.run_here", recorded)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    path = write_source(tmp_path / "a.jsonl", texts(9))
    prepare(prepare_recipe(tmp_path, {"path": str(path)}, workers=None))
    assert asked == [3]


def test_a_run_goes_on_beside_workers_of_one_whose_main_process_alone_was_killed(tmp_path: Path) -> None:
    recipe = prepare_recipe(tmp_path, sources_of(many_files(tmp_path, count=5, rows=1500)))
    killed = Recipe(**{**vars(recipe), "run": str(tmp_path / "killed")})
    draft = tmp_path / "killed" / ".prepare"
    child = subprocess.Popen(
        command(tmp_path, killed, "prepare.workers=2"),
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    while child.poll() is None and not list(draft.glob("*-partial.bin")):
        time.sleep(0.005)
    child.kill()
    child.wait()
    assert not (draft / "00004.json").exists(), "it was not killed midway"
    assert folder_bytes(prepare(killed)) == folder_bytes(prepare(recipe))


def test_a_full_disk_ends_with_code_2_and_the_next_run_goes_on(tmp_path: Path) -> None:
    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    recipe = prepare_recipe(tmp_path, {"path": str(write_source(tmp_path / "a.jsonl", texts(2000)))})
    done = subprocess.run(
        command(tmp_path, recipe),
        env={**ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit_file_size,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    assert "can't be written" in done.stderr
    assert not (tmp_path / "run" / "prepare").exists()
    assert prepare(recipe).is_dir()


def test_a_dry_run_writes_nothing_and_a_second_run_needs_overwrite(tmp_path: Path) -> None:
    recipe = prepare_recipe(tmp_path, {"path": str(write_source(tmp_path / "a.jsonl", texts(9)))})
    prepare(recipe, dry_run=True)
    assert not (tmp_path / "run").exists()
    first = folder_bytes(prepare(recipe))
    with pytest.raises(ConfigError, match="is there already"):
        prepare(recipe)
    write_source(tmp_path / "a.jsonl", texts(8))
    assert folder_bytes(prepare(recipe, overwrite=True)) != first


@pytest.mark.parametrize("place", ["prepare", ".prepare"])
@pytest.mark.parametrize("role", ["source", "benchmark", "url"])
def test_what_is_read_is_not_deleted_by_overwrite(tmp_path: Path, role: str, place: str) -> None:
    outside = write_source(tmp_path / "a.jsonl", texts(9))
    prepare(prepare_recipe(tmp_path, {"path": str(outside)}))
    (tmp_path / "run" / place).mkdir(exist_ok=True)
    inside = write_source(tmp_path / "run" / place / "b.jsonl", texts(9, 9))
    more = {"decontaminate": [str(inside)]} if role == "benchmark" else {}
    path = {"source": str(inside), "benchmark": str(outside), "url": f"file://{inside}"}[role]
    recipe = prepare_recipe(tmp_path, {"path": path}, **more)
    with pytest.raises(ConfigError, match=rf"must not be or hold what is read, but .*/{place}/b\.jsonl is in it"):
        prepare(recipe, overwrite=True)
    assert inside.is_file()
    assert (tmp_path / "run" / "prepare" / "manifest.json").is_file()


def test_a_folder_that_prepare_has_not_written_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "run" / "prepare").mkdir(parents=True)
    (tmp_path / "run" / "prepare" / "mine.py").write_text("mine")
    recipe = prepare_recipe(tmp_path, {"path": str(write_source(tmp_path / "a.jsonl", texts(9)))})
    with pytest.raises(ConfigError, match=r"holds no manifest\.json, .* not even --overwrite replaces it"):
        prepare(recipe, overwrite=True)
    assert (tmp_path / "run" / "prepare" / "mine.py").is_file()


def test_what_another_plan_left_is_not_gone_on_with(tmp_path: Path) -> None:
    path = write_source(tmp_path / "a.jsonl", [*texts(9), b"{\n"])
    recipe = prepare_recipe(tmp_path, {"path": str(path)})
    with pytest.raises(DataError, match=r"prepare\.max_bad_share"):
        prepare(recipe)
    write_source(path, texts(9))
    with pytest.raises(DataError, match="holds a started run of another recipe"):
        prepare(recipe)
    assert prepare(recipe, overwrite=True).is_dir()


@pytest.mark.parametrize(
    ("tokenizer", "kind", "error"),
    [
        ({"bos": False}, "text", None),
        ({"bos": False, "eos": False}, "text", "must have an end or begin token"),
        ({"chat": False}, "chat", "needs a chat template"),
    ],
)
def test_a_tokenizer_without_bos_marks_or_template(
    tmp_path: Path, tokenizer: dict[str, bool], kind: str, error: str | None
) -> None:
    path = write_source(tmp_path / "a.jsonl", texts(5))
    recipe = prepare_recipe(tmp_path, {"path": str(path), "kind": kind}, tokenizer=tokenizer)
    if error is None:
        assert "-------- document --------\ndocument 0 </s>" in (prepare(recipe) / "preview.txt").read_text()
    else:
        with pytest.raises(ConfigError, match=error):
            prepare(recipe)


@pytest.mark.parametrize("damage", ["truncated", "utf8", "missing", "null", "huge", "empty", "copy", "schema"])
def test_damaged_sources_end_with_code_2_and_name_the_file(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: dict[str, list[Any]] = {
        "utf8": [*texts(5), b'{"text": "\xff"}\n'],
        "missing": [*texts(5), {"body": "a"}],
        "null": [*texts(5), {"text": None}],
        "huge": [*texts(5), {"text": "z" * 50_000_000}],
        "schema": [{"body": "a"}],
    }
    name = {"truncated": "a.jsonl.gz", "schema": "a.parquet"}.get(damage, "a.jsonl")
    path = write_source(tmp_path / name, rows.get(damage, texts(3000)))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    if damage == "empty":
        path.write_bytes(b"")
    if damage == "copy":
        write_source(tmp_path / "b.jsonl", texts(3000))
    source = {"path": str(tmp_path / "[ab].*")}
    write_recipe(tmp_path / "recipe.yaml", prepare_recipe(tmp_path, source))
    assert main(["prepare", str(tmp_path / "recipe.yaml")]) == 2
    assert name in capsys.readouterr().err
    assert not (tmp_path / "run" / "prepare").exists()


def test_sources_are_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prepare\.sources must list"):
        prepare(prepare_recipe(tmp_path))
