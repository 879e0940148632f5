"""A loss or gradient that is not finite or explodes moves nothing: the run ends, or goes on without the batch."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lrc.config import TrainConfig
from lrc.data.blocks import BatchPlan, open_blocks
from lrc.errors import CheckpointError, NumericsError
from lrc.training.checkpoint_list import checkpoints, step_of
from lrc.training.divergence import LEAST, WINDOW, find_divergence, sources_of, with_step
from lrc.training.run_state import RunState
from lrc.verbs.train import train
from tests.tiny import tiny_recipe, write_rows

NAN, INF = float("nan"), float("inf")
SETTINGS = TrainConfig(max_steps=1, divergence_factor=10.0)
CHANGES: dict[str, Any] = {"start__method": "random", "data__held_out": None, "train__log_steps": 1}


def state_with(norms: list[float], objectives: list[float] | None = None) -> RunState:
    numbers = {"gradient_norms": tuple(norms), "objectives": tuple(objectives or [])}
    return RunState(step=0, tokens=0, seconds=0, sequences_per_step=1, **numbers)


@pytest.mark.parametrize(("objective", "norm"), [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, INF), (-INF, NAN)])
def test_what_is_not_finite_diverges_from_the_first_step_on(objective: float, norm: float) -> None:
    found = find_divergence(replace(SETTINGS, divergence_factor=None), state_with([]), objective=objective, norm=norm)
    assert found is not None
    assert "must be finite" in found


def test_a_norm_is_compared_with_the_median_of_enough_steps() -> None:
    few, enough = state_with([2.0] * (LEAST - 1)), state_with([2.0] * (LEAST - 1) + [1e9])
    assert find_divergence(SETTINGS, few, objective=1.0, norm=1e6) is None
    assert find_divergence(SETTINGS, enough, objective=1.0, norm=20.0) is None
    assert "10 times the median 2 of the last 16 steps, found 20.1" in str(
        find_divergence(SETTINGS, enough, objective=1.0, norm=20.1)
    )
    assert find_divergence(replace(SETTINGS, divergence_factor=None), enough, objective=1.0, norm=1e30) is None


def test_a_loss_is_compared_with_the_median_of_enough_steps() -> None:
    few, enough = ([2.0] * (LEAST - 1), [2.0] * (LEAST - 1) + [1e9])
    assert find_divergence(SETTINGS, state_with(enough, few), objective=1e6, norm=1.0) is None
    state = state_with([], enough)
    assert find_divergence(SETTINGS, state, objective=20.0, norm=1e6) is None
    assert find_divergence(SETTINGS, state, objective=20.1, norm=1.0) == (
        "the loss must be at most 10 times the median 2 of the last 16 steps, found 20.1"
    )
    assert find_divergence(replace(SETTINGS, divergence_factor=None), state, objective=1e30, norm=1.0) is None


def test_a_loss_near_zero_does_not_explode_by_its_ratio() -> None:
    state = state_with([], [1e-4] * LEAST)
    assert find_divergence(SETTINGS, state, objective=9.9, norm=1.0) is None
    assert find_divergence(SETTINGS, state, objective=10.1, norm=1.0) == (
        "the loss must be at most 10 times the median 0.0001 (which counts as 1) of the last 16 steps, found 10.1"
    )


def test_only_the_last_steps_are_kept() -> None:
    state = state_with([])
    for number in range(WINDOW + 5):
        state = with_step(state, objective=2.0 * number, norm=float(number))
    assert state.gradient_norms == tuple(float(number) for number in range(5, WINDOW + 5))
    assert state.objectives == tuple(2.0 * number for number in range(5, WINDOW + 5))


def test_every_sequence_of_a_batch_is_named_on_all_ranks(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", rows=12)
    blocks = open_blocks(str(tmp_path / "rows.jsonl"), None, sequence_length=16, vocab_size=48)
    one = BatchPlan(seed=0, batch_size=6, accumulation=1)
    split = BatchPlan(seed=0, batch_size=1, accumulation=3, num_ranks=2)
    names = [sorted(sources_of(blocks, plan, 1)) for plan in (one, split)]
    assert names[0] == names[1]
    lines = {int(name.rpartition(":")[2]) for name in names[0]}
    assert len(lines) == 6
    assert lines <= set(range(1, 13))
    assert sorted({*names[0], *sources_of(blocks, one, 0)}) == sorted(
        f"{tmp_path / 'rows.jsonl'}:{n}" for n in range(1, 13)
    )


def poison(monkeypatch: pytest.MonkeyPatch, batches: set[int], factor: float, offset: float = 0.0) -> None:
    """Multiply the objective of some batches and add to it."""
    from lrc.models import pair_model
    from lrc.training import loop

    read, losses, current = loop.step_batches, pair_model.head_losses, [0]

    def reading(blocks: Any, plan: Any, batch: int, **options: Any) -> Any:
        current[0] = batch
        return read(blocks, plan, batch, **options)

    def poisoned(*arguments: Any, **options: Any) -> Any:
        total, lm, kl = losses(*arguments, **options)
        return (total * factor + offset if current[0] in batches else total), lm, kl

    monkeypatch.setattr(loop, "step_batches", reading)
    monkeypatch.setattr(pair_model, "head_losses", poisoned)


def records(run: Path) -> list[dict[str, Any]]:
    path = run / "train" / "divergence.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_stop_ends_before_the_optimiser_moves_and_names_the_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2}, NAN)
    moved = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: (moved.append(1), step(self))[1])
    with pytest.raises(NumericsError, match=r"In step 2: loss and gradient must be finite.*divergence\.jsonl"):
        train(tiny_recipe(tmp_path, train__max_steps=4, train__save_steps=1, **CHANGES))
    assert len(moved) == 2
    assert [step_of(path) for path in checkpoints(tmp_path / "run" / "train")] == [1, 2]
    (record,) = records(tmp_path / "run")
    assert (record["step"], record["batch"], record["action"], record["objective"]) == (2, 2, "stop", "nan")
    assert len(record["sequences"]) == 4
    assert all(name.startswith(f"{tmp_path / 'train.jsonl'}:") for name in record["sequences"])


@pytest.mark.parametrize(
    ("factor", "offset", "guard", "reason"),
    [
        (NAN, 0.0, None, "must be finite"),
        (1e6, 0.0, 100.0, "the loss must be at most 100 times"),
        (1.0, 1e6, 100.0, "the loss must be at most 100 times"),
        (1e6, -1e9, 100.0, "the gradient norm must be at most 100 times"),
    ],
    ids=["nan", "exploding", "loss alone", "norm alone"],
)
def test_rollback_goes_back_to_the_checkpoint_and_leaves_the_batch_out(
    tmp_path: Path, factor: float, offset: float, guard: float | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, bad = LEAST + 6, LEAST + 3
    changes = {**CHANGES, "train__max_steps": steps, "train__on_divergence": "rollback", "train__save_steps": 4}
    poison(monkeypatch, {bad}, factor, offset)
    last = train(tiny_recipe(tmp_path, **changes, train__divergence_factor=guard))
    state = RunState.from_json((last / "state.json").read_text())
    assert (state.step, state.skipped_batches, state.next_batch) == (steps, (bad,), steps + 1)
    (record,) = records(tmp_path / "run")
    assert record["action"] == "rollback to step 16"
    assert reason in record["reason"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    # the same as a run that never met the batch
    from lrc.training import loop

    read = loop.step_batches
    skip = lambda blocks, plan, batch, **options: read(blocks, plan, batch + (batch >= bad), **options)  # noqa: E731
    monkeypatch.setattr(loop, "step_batches", skip)
    poison(monkeypatch, set(), 1.0)
    other = train(tiny_recipe(tmp_path, run=str(tmp_path / "other"), **{**changes, "train__on_divergence": "stop"}))
    expected, found = load_file(other / "model.safetensors"), load_file(last / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_without_a_checkpoint_the_batch_is_skipped_where_the_run_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {1}, NAN)
    last = train(
        tiny_recipe(tmp_path, train__max_steps=3, train__on_divergence="rollback", train__save_steps=9, **CHANGES)
    )
    assert RunState.from_json((last / "state.json").read_text()).skipped_batches == (1,)


@pytest.mark.parametrize("save_steps", [2, 99], ids=["checkpoint", "no checkpoint"])
def test_a_run_that_keeps_diverging_ends(tmp_path: Path, save_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(2, 99)), NAN)
    changes = {**CHANGES, "train__on_divergence": "rollback", "train__save_steps": save_steps}
    with pytest.raises(NumericsError, match="must be finite"):
        train(tiny_recipe(tmp_path, train__max_steps=9, **changes))
    assert [record["action"] for record in records(tmp_path / "run")] == ["rollback to step 2"] * 3 + ["stop"]
    assert [record["batch"] for record in records(tmp_path / "run")] == [2, 3, 4, 5]


@pytest.mark.parametrize("is_main", [True, False], ids=["first rank", "other rank"])
def test_every_rank_hears_that_no_checkpoint_is_whole(
    tmp_path: Path, is_main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrc.training import rollback, together

    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "state.json").write_text("{")
    sent: list[Any] = []
    found = tmp_path / "checkpoint-1"

    def gather(outcomes: list[Any], own: Any) -> None:  # first the checkpoints that there are, then what is wrong
        sent.append(own)
        outcomes[:] = [([found], None) if len(sent) == 1 else (None, None), (None, None)]
        if len(sent) == 2:
            outcomes[1] = ("state.json is not as it was written", None)

    monkeypatch.setattr(together.dist, "all_gather_object", gather)
    accelerator = SimpleNamespace(num_processes=2, process_index=0 if is_main else 1, is_main_process=is_main)
    log = SimpleNamespace(say=lambda line: None)
    parts: Any = SimpleNamespace(accelerator=accelerator, log=log, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"No checkpoint .* is whole, the newest too: state\.json"):
        rollback.last_checkpoint(parts)
    assert sent[0] == ([found] if is_main else None, None)
    assert len(sent) == 2
