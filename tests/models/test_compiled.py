"""Compiled layers give the losses, gradients and updates of eager ones; what can't be compiled runs eagerly."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._functorch import config as autograd_config
from torch.nn.parallel import DistributedDataParallel

from lrc.config import Checkpointing
from lrc.models.compiled import compile_layers
from lrc.models.dense import Dense
from lrc.models.pair_model import PairModel
from lrc.models.step_weights import StepWeights
from tests.models.test_pair import (
    batch,
    clipping_teacher,
    counts_of,
    fill_identity,
    fill_random,
    gradients,
    make_pair,
)
from tests.tiny import tiny_teacher

# the tracer's own: it asks the stream, which is no leaf, for its gradient, and instantiates functions
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script_method` is deprecated:DeprecationWarning"),
]

TRACED = "aot_eager"
"""Traces both passes as the compiler does, and runs torch's own kernels: seconds instead of a minute."""


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def refuse(line: str) -> None:
    raise AssertionError(line)


def filled(
    family: str = "llama", policy: Checkpointing = "none", changes: dict[str, Any] | None = None, **objective: Any
) -> PairModel:
    pair = make_pair(tiny_teacher(family, **(changes or {})), 16, lm_weight=0.5, clone_weight=0.7, **objective)
    fill_random(pair)
    pair.set_activation_checkpointing(policy)
    return pair


def train(pair: PairModel, *, merges_once: bool, lengths: tuple[int, ...] = (10, 10)) -> dict[str, Tensor]:
    """Do two steps; returns the losses of each micro-batch and the trained tensors."""
    optimizer = torch.optim.AdamW(pair.trained().values(), lr=1e-3, weight_decay=0.0)
    weights = StepWeights(pair) if merges_once else None
    found = {}
    for step in range(2):
        for seed, length in enumerate(lengths):
            if weights is not None:
                weights.form()
            ids, labels, valid = batch(length=length, seed=seed)
            losses = pair(ids, labels, valid, counts_of(labels, valid))
            losses.objective.backward()
            found[f"step {step}, micro-batch {seed}"] = losses.objective.detach()
        if weights is not None:
            weights.pull_back()
        optimizer.step()
        optimizer.zero_grad()
    return found | {name: value.detach() for name, value in pair.trained().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= 1e-6 * float(value.norm()), name


@pytest.mark.slow
def test_compiled_code_gives_eager_losses_and_updates() -> None:
    pair = filled()
    compile_layers(pair, refuse)
    assert_same(train(pair, merges_once=False), train(filled(), merges_once=False))


@pytest.mark.parametrize(
    ("family", "policy", "merges_once", "objective"),
    [
        ("llama", "layer", False, {"clone_error": "raw", "attention_output_space": "teacher"}),
        ("gemma3_text", "none", True, {}),
    ],
    ids=["recomputed", "merged-once"],
)
def test_traced_layers_give_eager_losses_and_updates(
    family: str, policy: Checkpointing, merges_once: bool, objective: dict[str, Any]
) -> None:
    pair = filled(family, policy, **objective)
    compile_layers(pair, refuse, backend=TRACED)
    assert_same(train(pair, merges_once=merges_once), train(filled(family, **objective), merges_once=False))


def test_rows_of_other_lengths_and_a_dense_phase_are_traced_anew() -> None:
    found, expected = filled(), filled()
    compile_layers(found, refuse, backend=TRACED)
    for pair in (found, expected):
        train(pair, merges_once=False, lengths=(10, 12))
        pair.enter(Dense(tensors="mlp", form="replace"))
    assert_same(*(train(pair, merges_once=False) for pair in (found, expected)))


def test_a_compiled_pair_trains_under_ddp() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        pair = filled()
        compile_layers(pair, refuse, backend=TRACED)
        ids, labels, valid = batch()
        DistributedDataParallel(pair)(ids, labels, valid, counts_of(labels, valid)).objective.backward()
        found = {name: value.grad for name, value in pair.trained().items() if value.grad is not None}
    finally:
        dist.destroy_process_group()
    assert_same(found, gradients(filled(), *batch()))


def test_compiled_clone_points_are_the_modules_own_outputs_where_the_model_writes_into_them() -> None:
    teacher = clipping_teacher()
    pair = make_pair(teacher, 32)
    fill_identity(pair, teacher)
    compile_layers(pair, refuse, backend="eager")
    ids, labels, valid = batch()
    assert float(pair(ids, labels, valid, counts_of(labels, valid)).clone.max()) < 1e-5


def broken(*_: Any) -> Any:
    raise RuntimeError("no C++ compiler here")


@pytest.mark.parametrize(
    "backend", [broken, aot_autograd(fw_compiler=boxed_nop, bw_compiler=broken)], ids=["forward", "backward"]
)
def test_a_failure_is_told_once_and_layers_run_eagerly(backend: Any) -> None:
    told: list[str] = []
    pair = filled()
    compile_layers(pair, told.append, backend=backend)
    found = train(pair, merges_once=False)
    (line,) = told
    assert "run as they are" in line
    assert line.endswith("no C++ compiler here")
    assert not autograd_config.force_non_lazy_backward_lowering  # nobody else's graphs are lowered at once
    expected = train(filled(), merges_once=False)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_layers_that_ran_compiled_are_recomputed_compiled_after_a_later_one_fails() -> None:
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}  # each compiled for itself
    compiled: list[Any] = []

    def once(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        if len(compiled) > 1:
            raise RuntimeError("no memory left")
        return aot_autograd(fw_compiler=boxed_nop, bw_compiler=boxed_nop)(graph, inputs)

    told: list[str] = []
    pair = filled("gemma3_text", "layer", kinds)
    compile_layers(pair, told.append, backend=once)  # type: ignore[arg-type]
    found = gradients(pair, *batch())
    assert (len(compiled), len(told)) == (2, 1)
    assert_same(found, gradients(filled("gemma3_text", changes=kinds), *batch()))


def test_measures_are_not_compiled() -> None:
    pair = filled()
    compile_layers(pair, refuse, backend=broken)  # type: ignore[arg-type]
    with torch.no_grad():
        ids, labels, valid = batch()
        pair(ids, labels, valid, counts_of(labels, valid))
