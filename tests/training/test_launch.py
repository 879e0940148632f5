"""Around the loop: processes that don't see each other, a disk too small, and a recipe that reads back equal."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from lrc.clone.sites import Variant
from lrc.config import ObjectiveConfig, TrainConfig, load_recipe
from lrc.errors import CheckpointError, ConfigError
from lrc.models.dense import Dense
from lrc.models.pair_model import PairModel
from lrc.training.launch import check_space, make_accelerator, start_trackers, trackers_need_folder, write_recipe
from tests.tiny import tiny_recipe, tiny_teacher

CPU = torch.device("cpu")
TRAINED_VALUES = 16 * (32 * 16) + 5 * 16
"""Values of the tiny pair: 7 projections in each of 2 layers, embedding and head; 2 gains a layer and the last."""
ONE = 3 * 4 * TRAINED_VALUES
"""Bytes of a checkpoint: weights and two moments in float32."""
ONE_OF_MUON = ONE - 4 * 16 * (32 * 16) + 4 * 16 * 32
"""With Muon: one moment less of each projection, and the sizes of its rows."""


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(max_steps=3000, **changes)


def test_one_process_on_the_cpu_computes_in_the_pairs_own_dtype(tmp_path: Path) -> None:
    accelerator = make_accelerator(settings(), tmp_path / "run", CPU)
    assert (accelerator.num_processes, accelerator.process_index, accelerator.is_main_process) == (1, 0, True)
    assert accelerator.device == CPU
    assert accelerator.mixed_precision == "no"
    assert accelerator.gradient_accumulation_steps == 1
    assert list(tmp_path.iterdir()) == []


def test_gradients_under_ddp_lie_in_the_buckets_that_are_exchanged(tmp_path: Path) -> None:
    accelerator = make_accelerator(settings(), tmp_path / "run", CPU)
    assert accelerator.ddp_handler is not None
    # with broadcast_buffers torch would print that it is deprecated
    assert accelerator.ddp_handler.to_kwargs() == {"gradient_as_bucket_view": True}


@pytest.mark.parametrize("launched", [2, 8])
def test_processes_that_would_train_alone_are_refused(
    tmp_path: Path, launched: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_accelerator(settings(), tmp_path, CPU)  # accelerate has found one process; the launcher counts more
    monkeypatch.setenv("WORLD_SIZE", str(launched))
    with pytest.raises(ConfigError, match=rf"{launched} processes were launched but accelerate joins 1.*torchrun"):
        make_accelerator(settings(), tmp_path, CPU)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert make_accelerator(settings(), tmp_path, CPU).num_processes == 1


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.trackers = \['carrier-pigeon'\]"):
        make_accelerator(settings(trackers=("carrier-pigeon",)), tmp_path, CPU)


def test_trackers_write_below_the_runs_folder(tmp_path: Path) -> None:
    accelerator = make_accelerator(settings(trackers=("tensorboard",)), tmp_path, CPU)
    assert accelerator.project_dir == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("trackers", "calls"), [((), []), (("tensorboard",), [("lrc", {"config": {"tags": "small,first"}})])]
)
def test_trackers_are_opened_with_the_recipes_tags(trackers: tuple[str, ...], calls: list[Any]) -> None:
    opened: list[Any] = []
    accelerator: Any = SimpleNamespace(init_trackers=lambda name, **options: opened.append((name, options)))
    start_trackers(accelerator, settings(trackers=trackers, tags=("small", "first")))
    assert opened == calls


def test_a_tracker_that_refuses_is_named_with_its_reason() -> None:
    def refuse(name: str, **options: Any) -> None:
        raise RuntimeError("No API key.\nLog in.")

    accelerator: Any = SimpleNamespace(init_trackers=refuse)
    with pytest.raises(ConfigError, match=r"train\.trackers = \['wandb'\] can't be started: .* No API key\. Log in\."):
        start_trackers(accelerator, settings(trackers=("wandb",)))


@pytest.mark.parametrize(
    ("trackers", "expected"), [((), False), (("wandb", "trackio"), False), (("wandb", "tensorboard"), True)]
)
def test_tensorboard_alone_needs_the_runs_folder(trackers: tuple[str, ...], expected: bool) -> None:
    assert trackers_need_folder(settings(trackers=trackers)) is expected


@pytest.fixture(scope="module")
def pair() -> PairModel:
    return PairModel(tiny_teacher("llama"), hidden_size=16, variant=Variant(), objective=ObjectiveConfig())


@pytest.mark.parametrize(("keep", "num_checkpoints"), [(1, 3), (2, 4), (5, 7), (None, 8)])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_disk_must_hold_the_kept_checkpoints_the_best_and_one_more(
    tmp_path: Path,
    pair: PairModel,
    optimizer: Literal["adamw", "muon"],
    keep: int | None,
    num_checkpoints: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Path] = []
    free = needed = num_checkpoints * {"adamw": ONE, "muon": ONE_OF_MUON}[optimizer]

    def disk_usage(folder: Path) -> Any:
        asked.append(folder)
        return SimpleNamespace(free=free)

    monkeypatch.setattr("lrc.training.launch.shutil.disk_usage", disk_usage)
    check_space(tmp_path, pair, settings(save_total_limit=keep, optimizer=optimizer))
    free = needed - 1
    with pytest.raises(CheckpointError, match=r"room for 0\.0 GB.*found 0\.0 GB.*train\.save_total_limit"):
        check_space(tmp_path, pair, settings(save_total_limit=keep, optimizer=optimizer))
    assert asked == [tmp_path, tmp_path]


def say_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("lrc.training.launch.shutil.disk_usage", lambda folder: SimpleNamespace(free=free))


def write_checkpoints(folder: Path, *sizes: int) -> None:
    for step, size in enumerate(sizes):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "state.json").write_bytes(bytes(size))


@pytest.mark.parametrize(
    ("sizes", "needed"),
    [((), 4 * ONE), ((ONE // 2,), 4 * ONE - ONE // 2), ((ONE, ONE), 2 * ONE), ((ONE,) * 9, ONE)],
    ids=["none", "half", "two", "more than it keeps"],
)
def test_a_run_that_goes_on_needs_no_room_for_the_checkpoints_that_it_has(
    tmp_path: Path, pair: PairModel, sizes: tuple[int, ...], needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "train"
    write_checkpoints(folder, *sizes)
    (tmp_path / "train.log").write_bytes(bytes(ONE))  # no checkpoint of the run
    say_free(monkeypatch, needed)
    check_space(folder, pair, settings(save_total_limit=2), goes_on=True)
    say_free(monkeypatch, needed - 1)
    with pytest.raises(CheckpointError, match="must have room"):
        check_space(folder, pair, settings(save_total_limit=2), goes_on=True)


def test_a_run_that_begins_anew_counts_what_its_folder_frees(
    tmp_path: Path, pair: PairModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run" / "train"
    say_free(monkeypatch, 4 * ONE)
    check_space(folder, pair, settings(save_total_limit=2))
    assert list(tmp_path.iterdir()) == []
    write_checkpoints(folder, ONE, ONE, ONE)
    (folder / "metrics.jsonl").write_bytes(bytes(10))
    say_free(monkeypatch, ONE - 10)
    check_space(folder, pair, settings(save_total_limit=2))
    say_free(monkeypatch, ONE - 11)
    with pytest.raises(CheckpointError, match="must have room"):
        check_space(folder, pair, settings(save_total_limit=2))


def test_a_file_in_the_run_folders_place_is_refused(tmp_path: Path, pair: PairModel) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(CheckpointError, match=r"The run folder .*run/train can't be written"):
        check_space(tmp_path / "run" / "train", pair, settings(save_total_limit=2))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_later_phase_that_trains_more_needs_its_own_room(
    tmp_path: Path, pair: PairModel, optimizer: Literal["adamw", "muon"], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = Dense(tensors="every")
    free = {name: shape.numel() for name, shape in pair.trained_shapes(dense).items() if name.startswith("dense.")}
    tables = 2 * 48 * 16
    assert sum(free[f"dense.{name}.weight"] for name in ("model.embed_tokens", "lm_head")) == tables
    rows = sum(shape[0] for name, shape in pair.trained_shapes(dense).items() if name.startswith("dense."))
    moments = {"adamw": 8 * sum(free.values()), "muon": 4 * (sum(free.values()) + tables + rows)}[optimizer]
    one = 4 * sum(free.values()) + moments + 12 * 5 * 16
    say_free(monkeypatch, 3 * one)
    run = settings(save_total_limit=1, optimizer=optimizer)
    check_space(tmp_path, pair, run, dense=dense)
    say_free(monkeypatch, 3 * one - 1)
    with pytest.raises(CheckpointError, match="must have room"):
        check_space(tmp_path, pair, run, dense=dense)


def test_a_full_disk_is_told_in_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = {"projections.lm_head": torch.empty(10**9, device="meta")}
    big: Any = SimpleNamespace(trained=lambda: trained, stored=lambda: trained, tables=frozenset)
    monkeypatch.setattr("lrc.training.launch.shutil.disk_usage", lambda folder: SimpleNamespace(free=1_540_000_000))
    with pytest.raises(CheckpointError, match=r"room for 48\.0 GB of checkpoints, found 1\.5 GB"):
        check_space(tmp_path, big, settings(save_total_limit=2))
    fixed = {"corrections.layer": torch.empty(10**9, device="meta")}
    big.stored = lambda: trained | fixed  # the optimiser remembers nothing of it
    with pytest.raises(CheckpointError, match=r"room for 64\.0 GB of checkpoints"):
        check_space(tmp_path, big, settings(save_total_limit=2))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective__without": ["attn-q", "mlp-out"], "train__trackers": ["tensorboard"], "train__tags": ["a", "1"]},
        {"train__save_total_limit": None, "data__held_out": None, "train__learning_rate": 6.7e-5},
        {"run": "runs/é: #1", "teacher": "null", "train__warmup_ratio": 1e-9},
    ],
    ids=["plain", "lists", "nulls", "odd words"],
)
def test_a_written_recipe_reads_back_equal(tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = tiny_recipe(tmp_path, **changes)
    for _ in range(2):
        write_recipe(tmp_path / "recipe.yaml", recipe)
        assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert "!!python" not in (tmp_path / "recipe.yaml").read_text()
    assert not list(tmp_path.glob(".recipe*"))


def test_ranks_of_gloo_leave_only_when_its_threads_are_done(tmp_path: Path) -> None:
    script = Path(__file__).parent / "leave_gloo.py"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "4"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.stdout.split() == ["0"] * 8, run.stdout + run.stderr[-2000:]
