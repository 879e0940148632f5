"""Trained tensors that no gradient has reached, as of an expert without tokens: saved, loaded, refused under DDP."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lrc.config import TrainConfig
from lrc.errors import ConfigError
from lrc.models.moments import moment_shapes
from lrc.models.part import ProjectedPart
from lrc.training.engine import FullEngine
from lrc.training.optimizer import make_optimizer
from lrc.training.sharded import ShardedEngine
from lrc.verbs.train import train
from tests.tiny import tiny_recipe

PREFIX, WEIGHT = "model.layers.0.", "self_attn.q_proj.weight"
UNREACHED = f"projections.{PREFIX}self_attn.q_proj"
SHAPES = {"projection": (6, 4), "unreached": (6, 4), "gain": (4,)}


@pytest.fixture
def one_unreached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no gradient through the first layer's query weight."""
    student_tensors = ProjectedPart.student_tensors

    def cut(self: ProjectedPart) -> dict[str, Tensor]:
        found = student_tensors(self)
        return found | {WEIGHT: found[WEIGHT].detach()} if self.prefix == PREFIX else found

    monkeypatch.setattr(ProjectedPart, "student_tensors", cut)
    monkeypatch.setattr("lrc.verbs.train.require_family", lambda config: None)  # its gradient oracle refuses the family


@pytest.mark.usefixtures("one_unreached")
@pytest.mark.parametrize(("optimizer", "accumulation"), [("adamw", 1), ("adamw", 2), ("muon", 1)])
def test_a_run_goes_on_from_its_checkpoint_as_if_nothing_was(tmp_path: Path, optimizer: str, accumulation: int) -> None:
    def recipe(run: str) -> Any:
        return tiny_recipe(
            tmp_path,
            run=str(tmp_path / run),
            start__method="random",
            data__held_out=None,
            objective__without=["attn-q"],  # else its clone term's gradient reaches the projection
            train__max_steps=4,
            train__save_steps=2,
            train__batch_size=4 // accumulation,
            train__gradient_accumulation_steps=accumulation,
            train__optimizer=optimizer,
        )

    whole = train(recipe("whole"))
    halfway = whole.with_name("checkpoint-2")
    resumed = train(recipe("resumed"), resume=str(halfway))
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    before, after = (load_file(folder / "model.safetensors") for folder in (halfway, whole))
    assert [name for name, value in after.items() if torch.equal(value, before[name])] == [UNREACHED]
    kept = {key: value for key, value in load_file(whole / "optimizer.safetensors").items() if UNREACHED in key}
    assert {key.partition("/")[0] for key, value in kept.items() if not value.any()} == (
        {"step", "exp_avg", "exp_avg_sq"} if optimizer == "adamw" else {"momentum"}
    )


def engine_of(trained: dict[str, nn.Parameter], accelerator: Any, **settings: Any) -> FullEngine:
    pair: Any = SimpleNamespace(
        trained=lambda: trained, stored=lambda: trained, tables=frozenset, compute_dtype=torch.float32
    )
    return FullEngine(accelerator, pair, TrainConfig(max_steps=1, **settings), accumulation=1)


def some_trained() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}


def test_ddp_that_merges_in_each_micro_batch_refuses_such_a_tensor_in_the_first_step() -> None:
    trained = some_trained()
    two: Any = SimpleNamespace(num_processes=2, process_index=0, prepare_model=lambda pair: pair)
    engine = engine_of(trained, two)
    for name in ("projection", "gain"):
        trained[name].grad = torch.ones_like(trained[name])
    with pytest.raises(ConfigError, match=r"none has reached 1 of them, for example unreached\. Set train\.merge=step"):
        engine.update(1e-3, lambda norm: True)
    for value in trained.values():
        value.grad = torch.ones_like(value)
    assert engine.update(1e-3, lambda norm: True)[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_sharded_engine_saves_its_first_moments_too(optimizer: Literal["adamw", "muon"]) -> None:
    engine = ShardedEngine.__new__(ShardedEngine)
    engine.accelerator = SimpleNamespace(is_main_process=True)  # type: ignore[assignment]
    engine.settings = TrainConfig(max_steps=1, optimizer=optimizer)
    engine.trained = engine.stored = some_trained()
    engine.moment_shapes = moment_shapes({name: value.shape for name, value in engine.trained.items()}, optimizer)
    engine.optimizer = make_optimizer(engine.trained.values(), engine.settings)
    for name in ("projection", "gain"):
        engine.trained[name].grad = torch.ones_like(engine.trained[name])
    engine.optimizer.step()
    moments = engine.tensors().moments
    assert {key: piece.shape for key, piece in moments.items()} == engine.moment_shapes
    sizes = {key: float(piece.values.sum()) for key, piece in moments.items() if key.endswith("/unreached")}
    adamw = {"step/unreached": 0.0, "exp_avg/unreached": 0.0, "exp_avg_sq/unreached": 0.0}
    assert sizes == (adamw if optimizer == "adamw" else {"row_size/unreached": 6.0, "momentum/unreached": 0.0})
