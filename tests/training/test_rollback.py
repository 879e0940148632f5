"""A refused step ends the run, or goes back and leaves the batch out: the weights are those of a run without it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lrc.errors import CheckpointError, NumericsError
from lrc.training.checkpoint_list import checkpoints, step_of
from lrc.training.divergence import LEAST
from lrc.training.metrics import MetricsLog
from lrc.training.run_state import RunState
from lrc.verbs.train import train
from tests.tiny import tiny_recipe
from tests.training.poison import poison

NAN = float("nan")
CHANGES: dict[str, Any] = {"start__method": "random", "data__held_out": None, "train__log_steps": 1}


def records(run: Path) -> list[dict[str, Any]]:
    path = run / "train" / "divergence.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_stop_ends_before_the_optimiser_moves_and_names_the_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison({2: (NAN, 0.0)}, monkeypatch.setattr)
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
    poison({bad: (factor, offset)}, monkeypatch.setattr)
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
    poison({}, monkeypatch.setattr)
    other = train(tiny_recipe(tmp_path, run=str(tmp_path / "other"), **{**changes, "train__on_divergence": "stop"}))
    expected, found = load_file(other / "model.safetensors"), load_file(last / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_log_that_cannot_be_rewound_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: MetricsLog, step: int) -> None:
        raise OSError(28, "No space left on device")

    poison({3: (NAN, 0.0)}, monkeypatch.setattr)
    monkeypatch.setattr(MetricsLog, "rewind", fail)
    changes = {**CHANGES, "train__max_steps": 6, "train__on_divergence": "rollback", "train__save_steps": 2}
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl can't be written: the disk is full.*--resume auto"):
        train(tiny_recipe(tmp_path, **changes))


def test_without_a_checkpoint_the_batch_is_skipped_where_the_run_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison({1: (NAN, 0.0)}, monkeypatch.setattr)
    last = train(
        tiny_recipe(tmp_path, train__max_steps=3, train__on_divergence="rollback", train__save_steps=9, **CHANGES)
    )
    assert RunState.from_json((last / "state.json").read_text()).skipped_batches == (1,)


@pytest.mark.parametrize("save_steps", [2, 99], ids=["checkpoint", "no checkpoint"])
def test_a_run_that_keeps_diverging_ends(tmp_path: Path, save_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(dict.fromkeys(range(2, 99), (NAN, 0.0)), monkeypatch.setattr)
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
