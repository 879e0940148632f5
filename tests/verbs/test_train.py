"""`lrc train`: the start that it measures and writes down, and runs that are begun anew, gone on with or finished."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lrc.config import Recipe, load_recipe
from lrc.errors import CheckpointError, ConfigError, DataError
from lrc.models.checkpoint import versions
from lrc.models.folder import resolve_folder
from lrc.training.checkpoint_list import find_resume
from lrc.training.run_folder import only_run
from lrc.verbs.convert import convert
from lrc.verbs.quiet import quiet_imports
from lrc.verbs.train import train
from lrc.verbs.train_start import fill
from tests.tiny import tiny_recipe, write_rows

MEASURES = {"kl", "cross_entropy", "teacher_cross_entropy", "top1_agreement", "top5_agreement", "positions"}
RANKS = {"effective_rank", "teacher_effective_rank", "effective_rank_share", "has_collapsed"}


def read_lines(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "train" / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def read_start(run: Path) -> dict[str, Any]:
    start: dict[str, Any] = json.loads((run / "train" / "start.json").read_text())
    return start


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def use_short_rows(root: Path) -> None:
    """Leave one full row."""
    write_rows(root / "train.jsonl", rows=5, ragged=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a calibrated start."""
    root = tmp_path_factory.mktemp("train")
    train(tiny_recipe(root, train__max_steps=4, train__save_total_limit=2))
    return root


def test_a_calibrated_start_is_written_down(root: Path) -> None:
    start = read_start(root / "run")
    assert set(start) == {
        "method",
        "calibration_tokens",
        "seconds",
        "layer_errors",
        "kept_at_pca",
        "unrotated",
        "held_out",
        "effective_rank",
        "versions",
    }
    assert (start["method"], start["calibration_tokens"]) == ("calibrated", 256)
    assert start["seconds"] > 0
    assert len(start["layer_errors"]) == 2
    assert start["kept_at_pca"] == []
    assert all(0 < error < 1 for error in start["layer_errors"])
    assert len(start["effective_rank"]) == 2
    assert all(1 < rank <= 16 for rank in start["effective_rank"])
    assert start["versions"] == versions()


def test_the_first_held_out_line_is_the_starts(root: Path) -> None:
    lines = read_lines(root / "run", "held_out")
    start = read_start(root / "run")["held_out"]
    assert set(start) == MEASURES | RANKS
    assert lines[0] == {"kind": "held_out", "step": 0, "tokens": 0, "seconds": 0.0, **start}
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]


def test_held_out_lines_are_what_plain_models_give_in_float64(root: Path, tmp_path: Path) -> None:
    folders = (convert(root / "run" / "train" / "checkpoint-4", tmp_path / "student"), root / "teacher")
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for folder in folders)
    rows = [json.loads(line)["input_ids"] for line in (root / "held_out.jsonl").read_text().splitlines()]
    ids = torch.tensor(rows)
    with torch.no_grad():
        log_s, log_t = (model(ids).logits[:, :-1].flatten(0, 1).log_softmax(-1) for model in (student, teacher))
    labels = ids[:, 1:].flatten()
    first, *_, last = read_lines(root / "run", "held_out")
    assert first["positions"] == last["positions"] == labels.numel() == 60
    kl = float(kl_div(log_s, log_t, log_target=True, reduction="batchmean"))
    assert last["kl"] == pytest.approx(kl, rel=1e-3)
    assert last["cross_entropy"] == pytest.approx(float(cross_entropy(log_s, labels)), rel=1e-4)
    best = log_t.argmax(-1, keepdim=True)
    for measure, few in (("top1_agreement", 1), ("top5_agreement", 5)):
        assert last[measure] == float((log_s.topk(few).indices == best).any(-1).double().mean())
    for line in (first, last):
        assert line["teacher_cross_entropy"] == pytest.approx(float(cross_entropy(log_t, labels)), rel=1e-4)


def test_a_random_start_looks_at_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(tmp_path, start__method="random", train__max_steps=1, data__held_out=None)
    use_short_rows(tmp_path)
    train(recipe)
    start = read_start(tmp_path / "run")
    assert (start["method"], start["calibration_tokens"], start["layer_errors"]) == ("random", 0, [])
    assert start["held_out"] is start["effective_rank"] is None
    assert read_lines(tmp_path / "run", "held_out") == []
    assert "start:" not in capsys.readouterr().err


def test_what_is_going_on_is_said_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quiet_imports()  # as every command does: DeepSpeed's note goes to standard output
    recipe = tiny_recipe(tmp_path, train__max_steps=3, train__gradient_accumulation_steps=2)
    last = train(recipe)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    rows, length = 2 * recipe.train.batch_size, recipe.data.sequence_length
    assert lines[0] == f"3 steps of {rows} x {length} tokens: {3 * rows * length:,} tokens"
    assert lines[1] == f"teacher {tmp_path / 'teacher'} on cpu in float32"
    share = read_start(tmp_path / "run")["held_out"]["effective_rank_share"]
    assert any(line.startswith("held out   step      0") and line.endswith(f"rank {share:.0%}") for line in lines)
    for part in ("start: basis 8/8 batches", "start: calibrate 2/2 layers"):
        assert any(line.startswith(part) for line in lines)
    assert lines[-1] == f"trained: {last}"


def test_the_runs_folder_holds_the_resolved_recipe(root: Path) -> None:
    recipe = tiny_recipe(root, train__max_steps=4, train__save_total_limit=2)
    assert load_recipe(root / "run" / "train" / "recipe.yaml") == recipe
    names = sorted(path.name for path in (root / "run" / "train").iterdir())
    assert names == ["checkpoint-2", "checkpoint-4", "metrics.jsonl", "recipe.yaml", "start.json"]


def test_going_on_with_a_finished_run_changes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_below(root)
    last = train(tiny_recipe(root, train__max_steps=4, train__save_total_limit=2), resume="auto")
    assert last == root / "run" / "train" / "checkpoint-4"
    assert files_below(root) == before
    assert f"resumed from {last} at step 4" in capsys.readouterr().err


def test_going_on_in_another_dtype_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes: dict[str, Any] = {"train__max_steps": 2, "train__save_steps": 1, "start__method": "random"}
    last = train(tiny_recipe(tmp_path, **changes))
    assert json.loads((last / "lrc_config.json").read_text())["compute_dtype"] == "float32"
    shutil.rmtree(last)
    assert "computed in" not in capsys.readouterr().err
    train(tiny_recipe(tmp_path, **changes, train__compute_dtype="bfloat16"), resume="auto")
    assert (
        "note: computed in float32 before and in bfloat16 from here on; train.compute_dtype=float32 keeps it"
    ) in capsys.readouterr().err


def test_a_dry_run_says_where_the_checkpoint_will_lie(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_below(root)
    recipe = tiny_recipe(root, run=str(root / "other"), train__max_steps=9)
    assert train(recipe, dry_run=True) == root / "other" / "train" / "checkpoint-9"
    assert files_below(root) == before
    assert capsys.readouterr().err == f"dry run: {root / 'teacher'} -> hidden size 16, 40 blocks: good\n"


@pytest.mark.parametrize("overwrite", [False, True])
def test_beginning_anew_leaves_nothing_of_an_earlier_try(tmp_path: Path, overwrite: bool) -> None:
    recipe = tiny_recipe(tmp_path, start__method="random", train__max_steps=2)
    folder = tmp_path / "run" / "train"
    (folder / ".checkpoint-8.partial").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("an earlier try")
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 7}\n')
    if overwrite:
        (folder / "checkpoint-8").mkdir()
        (folder / "checkpoint-8" / "state.json").write_text("{}")
        with pytest.raises(ConfigError, match="--overwrite"):
            train(recipe)
    train(recipe, overwrite=overwrite)
    assert [path.name for path in sorted(folder.glob("*checkpoint*"))] == ["checkpoint-2"]
    assert [line["step"] for line in read_lines(tmp_path / "run", "train")] == [2]


def test_a_checkpoint_that_does_not_say_what_it_is_cannot_be_resumed(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, start__method="random", train__max_steps=2)
    (train(recipe) / "lrc_config.json").unlink()
    before = files_below(tmp_path)
    with pytest.raises(CheckpointError, match=r"is whole, the newest too: lrc_config\.json can.t be read"):
        train(recipe, resume="auto")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("method", ["channel", "pca", "calibrated"])
def test_a_start_that_reads_data_needs_full_rows(tmp_path: Path, method: str) -> None:
    recipe = tiny_recipe(tmp_path, start__method=method, train__max_steps=1)
    use_short_rows(tmp_path)
    with pytest.raises(DataError) as caught:
        train(recipe)
    for part in (f"The {method} start needs 2 rows", "data.sequence_length = 16", str(tmp_path / "train.jsonl")):
        assert part in str(caught.value)


def test_calibration_takes_full_rows_from_the_front_only(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, start__method="pca", start__tokens=100, train__max_steps=1)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    short = json.dumps({"input_ids": json.loads(lines[3])["input_ids"][:9]})
    (tmp_path / "train.jsonl").write_text("\n".join([*lines[:3], short, *lines[4:]]) + "\n")
    train(recipe)
    # seven full rows reach 100; the short one is passed over, the odd one at the end drops out
    assert read_start(tmp_path / "run")["calibration_tokens"] == 96


def layers_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Llama hand its layers more than the stream by position, as Gemma 4 does."""
    called = LlamaDecoderLayer.__call__

    def by_position(self: nn.Module, stream: Tensor, attention_mask: Any = None, **keywords: Any) -> Any:
        return called(self, stream, attention_mask, **keywords)

    monkeypatch.setattr(LlamaDecoderLayer, "__call__", by_position)


def test_a_dry_run_refuses_a_teacher_that_the_start_can_t_follow_before_its_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers_by_position(monkeypatch)
    asked_for_weights: list[bool] = []

    def resolve(source: str, *, weights: bool = True) -> Path:
        asked_for_weights.append(weights)
        return resolve_folder(source, weights=weights)

    monkeypatch.setattr("lrc.verbs.train.resolve_folder", resolve)
    with pytest.raises(ConfigError, match=r"by position\. Use start\.method=pca"):
        train(tiny_recipe(tmp_path), dry_run=True)
    assert asked_for_weights == [False]
    for changes in ({"start__method": "pca"}, {"method": "only_kd"}):
        train(tiny_recipe(tmp_path, **changes), dry_run=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective__without": ["attn-z"]},
        {"train__trackers": ["carrier-pigeon"]},
        {"train__device": "cuda"},
        {"train__head_kernel": "liger"},
        {"start__method": "calibrated"},
    ],
    ids=["clone term", "tracker", "device", "head kernel", "calibration rows"],
)
def test_a_dry_run_refuses_what_the_run_would_refuse(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = tiny_recipe(tmp_path, **{"start__method": "random", **changes})
    use_short_rows(tmp_path)
    with pytest.raises((ConfigError, DataError)):
        train(recipe, dry_run=True)


def test_a_refused_start_leaves_the_earlier_run(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, start__method="random", train__max_steps=2))
    use_short_rows(tmp_path)
    before = files_below(tmp_path)
    with pytest.raises(DataError):
        train(tiny_recipe(tmp_path), overwrite=True)
    assert files_below(tmp_path) == before


def refuses_without_a_change(root: Path, error: type[Exception], said: str, **changes: Any) -> None:
    """The run that stands is to be overwritten, and another one begun; both are refused."""
    before = files_below(root)
    for name in ("run", "other"):
        with pytest.raises(error, match=said):
            train(tiny_recipe(root, run=str(root / name), **changes), overwrite=True)
        assert files_below(root) == before
        assert not (root / "other").exists()


def test_a_disk_too_small_leaves_the_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny_recipe(tmp_path, start__method="random", train__max_steps=2))
    monkeypatch.setattr("lrc.training.launch.shutil.disk_usage", lambda folder: SimpleNamespace(free=99))
    refuses_without_a_change(tmp_path, CheckpointError, "must have room")


def test_a_start_that_can_t_follow_the_teacher_leaves_the_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_recipe(tmp_path, start__method="random", train__max_steps=2))
    layers_by_position(monkeypatch)
    monkeypatch.setattr("lrc.verbs.train.check_start", lambda *_, **__: None)  # the walk itself refuses too
    monkeypatch.setattr("lrc.models.start.stream_sensitivity", lambda *_, **__: pytest.fail("the long part ran"))
    refuses_without_a_change(tmp_path, ConfigError, "layers called by position")


def test_a_rate_for_what_is_not_trained_leaves_the_earlier_run(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, start__method="random", train__max_steps=2))
    refuses_without_a_change(tmp_path, ConfigError, "no trained tensor is called", train__rate_shares={"query": 0.5})


def test_a_tracker_that_refuses_leaves_the_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Accelerator, *arguments: Any, **options: Any) -> None:
        raise RuntimeError("No API key.")

    train(tiny_recipe(tmp_path, start__method="random", train__max_steps=2))
    monkeypatch.setattr(Accelerator, "init_trackers", refuse)
    # tensorboard stands for one that needs no folder: the others are not installed here
    monkeypatch.setattr("lrc.verbs.train.trackers_need_folder", lambda settings: False)
    refuses_without_a_change(tmp_path, ConfigError, "No API key", train__trackers=["tensorboard"])


def test_a_run_goes_on_where_its_checkpoints_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"start__method": "random", "train__save_total_limit": 1}
    last = train(tiny_recipe(tmp_path, train__max_steps=2, **changes))
    size = sum(path.stat().st_size for path in last.iterdir())
    monkeypatch.setattr("lrc.training.launch.shutil.disk_usage", lambda folder: SimpleNamespace(free=2 * size))
    assert train(tiny_recipe(tmp_path, train__max_steps=4, **changes), resume="auto").name == "checkpoint-4"


@pytest.mark.parametrize(
    "changes",
    [{"student__hidden_size": 32}, {"objective__without": ["attn-z"]}, {"data__train": "/nowhere/*.jsonl"}],
    ids=["width", "clone term", "data"],
)
def test_a_teachers_weights_are_fetched_after_all_that_is_cheap_to_check(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for_weights: list[bool] = []

    def resolve(source: str, *, weights: bool = True) -> Path:
        asked_for_weights.append(weights)
        return resolve_folder(source, weights=weights)

    monkeypatch.setattr("lrc.verbs.train.resolve_folder", resolve)
    with pytest.raises((ConfigError, DataError)):
        train(tiny_recipe(tmp_path, start__method="random", **changes))
    assert asked_for_weights == [False]
    train(tiny_recipe(tmp_path, start__method="random"), dry_run=True)
    assert asked_for_weights == [False, False, True]


def test_a_run_that_finds_nothing_to_go_on_from_says_that_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(tmp_path, start__method="random", train__max_steps=1, data__held_out=None)
    said = f"no checkpoint in {tmp_path / 'run' / 'train'} to go on from: the run begins at step 0\n"
    train(recipe, resume="auto", dry_run=True)
    assert said in capsys.readouterr().err
    train(recipe, resume="auto")
    assert said in capsys.readouterr().err
    train(recipe, resume="auto")
    assert "to go on from" not in capsys.readouterr().err


def test_too_few_start_tokens_are_called_by_their_name(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        train(tiny_recipe(tmp_path, start__tokens=16))
    assert "start.tokens" in str(caught.value)


@pytest.mark.parametrize("keep", [1, None])
def test_a_run_that_goes_back_drops_the_checkpoints_after_that_step(tmp_path: Path, keep: int | None) -> None:
    changes: dict[str, Any] = {"start__method": "random", "data__held_out": None, "train__save_steps": 1}
    train(tiny_recipe(tmp_path, train__max_steps=3, **changes))
    folder = tmp_path / "run" / "train"
    back = tiny_recipe(tmp_path, train__max_steps=2, train__save_total_limit=keep, **changes)
    last = train(back, resume=str(folder / "checkpoint-1"))
    assert last.is_dir()
    assert find_resume(folder, "auto", print) == last


def test_a_named_checkpoint_that_a_kill_left_set_aside_is_gone_on_from_and_gets_its_name_back(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"start__method": "random", "data__held_out": None, "train__save_steps": 1}
    train(tiny_recipe(tmp_path, train__max_steps=1, **changes))
    folder = tmp_path / "run" / "train"
    (folder / "checkpoint-1").rename(folder / ".checkpoint-1.replaced")
    last = train(tiny_recipe(tmp_path, train__max_steps=2, **changes), resume=str(folder / "checkpoint-1"))
    assert last == folder / "checkpoint-2"
    assert sorted(path.name for path in folder.glob("*checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_a_finished_checkpoint_of_another_run_ends_with_a_checkpoint_here(tmp_path: Path) -> None:
    first = train(tiny_recipe(tmp_path, start__method="random", train__max_steps=2))
    other = tiny_recipe(tmp_path, start__method="random", train__max_steps=2, run=str(tmp_path / "other"))
    assert (train(other, resume=str(first)) / "model.safetensors").is_file()


@pytest.mark.parametrize("resume", [None, "auto"])
def test_data_in_the_runs_own_folder_are_never_deleted(tmp_path: Path, resume: str | None) -> None:
    recipe = tiny_recipe(tmp_path, start__method="random", train__max_steps=1)
    place = tmp_path / "run" / "train"
    place.mkdir(parents=True)
    (tmp_path / "train.jsonl").rename(place / "part.jsonl")
    before = files_below(tmp_path)
    for data in (str(place), str(place / "*.jsonl"), str(tmp_path / "held_out.jsonl")):
        for overwrite in (False, resume is None):
            with pytest.raises(ConfigError, match=r"Name another run folder \(run=\.\.\.\)"):
                train(replace_data(recipe, data), resume=resume, overwrite=overwrite)
    assert files_below(tmp_path) == before


def replace_data(recipe: Recipe, train_data: str) -> Recipe:
    return replace(recipe, data=replace(recipe.data, train=train_data))


def test_a_run_that_is_still_training_is_not_deleted(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, start__method="random", train__max_steps=1)
    with only_run(tmp_path / "run" / "train") as hold:
        (tmp_path / "run").mkdir()
        hold()
        with pytest.raises(CheckpointError, match="Another run writes to"):
            train(recipe)
    assert train(recipe).name == "checkpoint-1"


def test_what_changes_the_order_of_the_data_is_said_on_resuming(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"start__method": "random", "data__held_out": None}
    train(tiny_recipe(tmp_path, train__max_steps=1, **changes))
    train(tiny_recipe(tmp_path, train__max_steps=2, **changes), resume="auto")
    assert "another order" not in capsys.readouterr().err
    train(tiny_recipe(tmp_path, train__max_steps=3, train__seed=7, **changes), resume="auto")
    assert "note: train.seed was 0 and is 7: from here on the data may come in another order" in capsys.readouterr().err


def test_the_compute_dtype_is_the_first_processs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, start__method="random", train__max_steps=1, train__compute_dtype="auto")
    agreed: list[torch.dtype] = []

    def tell(accelerator: Accelerator, action: Callable[[], torch.dtype]) -> torch.dtype:
        agreed.append(action())
        return torch.float32

    monkeypatch.setattr("lrc.verbs.train.by_first", tell)
    monkeypatch.setattr("lrc.models.compute._core_seconds", lambda dtype: float(dtype != torch.bfloat16))
    train(recipe)
    assert agreed == [torch.bfloat16]


def test_a_run_that_was_overtaken_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(tmp_path, start__method="random", train__max_steps=1)

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr("lrc.verbs.train.fill", fill)
        train(recipe)
        return fill(*arguments)

    monkeypatch.setattr("lrc.verbs.train.fill", overtaken)
    with pytest.raises(CheckpointError, match="Another run has written checkpoints"):
        train(recipe)
    assert find_resume(tmp_path / "run" / "train", "auto", print) == tmp_path / "run" / "train" / "checkpoint-1"
