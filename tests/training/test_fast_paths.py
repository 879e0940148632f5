"""Every fast path of a step, off and on: the losses and updates of real float32 runs agree to 1e-6 (issue 8).

The reference merges in every micro-batch, keeps all activations, runs layers as they are, forms the head's logits at
once and its gradient through the merged matrix, leaves attention's gradient to torch, and moves one tensor after the
other. Paths that need a GPU (Liger, an offloaded teacher) have tests of their own.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lrc.clone.products import stays_in_cache
from lrc.models.short_attention import is_short
from lrc.training.optimizer import make_optimizer
from lrc.verbs.train import train
from tests.models.test_compiled import pytestmark as compilers_warnings
from tests.tiny import WORDS, tiny_recipe
from tests.training.rank_runs import trace_layers
from tests.training.test_golden import PUBLISHED

pytestmark = compilers_warnings

STEPS, LIMIT = 4, 1e-6
ROUNDING = 1e-7
"""Nats: float32 rounds a logarithm near 4 by that much, and at temperature 40 the KL is a small difference of them."""
SCALE = 1e3
LARGE_GRADIENTS = {"objective__kl_weight": SCALE, "objective__clone_weight": 0.2 * SCALE, "train__max_grad_norm": SCALE}
"""The objectives times a thousand: AdamW's steps are the same but for its epsilon (`test_loop.py:LARGE_GRADIENTS`)."""
OBJECTIVES: dict[str, dict[str, Any]] = {
    "default": LARGE_GRADIENTS,
    "published": PUBLISHED | LARGE_GRADIENTS | {"objective__lm_weight": SCALE},
}


def one_by_one(*arguments: Any, **options: Any) -> torch.optim.Optimizer:
    """Make the optimiser without torch's fused and stacked kernels."""
    optimizer = make_optimizer(*arguments, **options)
    for group in optimizer.param_groups:
        group |= {"fused": False, "foreach": False}
    return optimizer


def as_in_bfloat16(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, is_causal: bool) -> bool:
    """Take the attention gradient by products in float32 too, where nothing of it is rounded."""
    return is_short(query.bfloat16(), key.bfloat16(), value.bfloat16(), mask, is_causal=is_causal)


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What turns a path on, or all of them off."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Of the recipe."""
    functions: dict[str, Any] = field(default_factory=dict)
    """What takes the place of what, where the package chooses by size, dtype or device."""
    sign: str | None = None
    """A function that runs on the path."""


SLOW = Switches(
    settings={"train__merge": "micro_batch", "train__activation_checkpointing": "none", "train__compile": False},
    functions={
        "lrc.models.pair_head.is_cheaper_straight": lambda *sizes, positions: False,
        "lrc.clone.head.chunk_positions": lambda vocabulary, positions: positions,
        "lrc.clone.head.stays_in_cache": lambda tensor: False,
        "lrc.models.short_attention.is_short": lambda *tensors, is_causal: False,
        "lrc.training.engine.make_optimizer": one_by_one,
    },
)
FAST = {
    "merged once": Switches(settings={"train__merge": "step"}, sign="lrc.models.step_weights.StepWeights.pull_back"),
    "kept products": Switches(
        settings={"train__activation_checkpointing": "selective"}, sign="lrc.models.kept_products.is_kept"
    ),
    "recomputed": Switches(settings={"train__activation_checkpointing": "layer"}, sign="lrc.models.pair.checkpoint"),
    "compiled": Switches(
        settings={"train__compile": True},
        functions={"lrc.verbs.train.compile_layers": trace_layers},
        sign="lrc.verbs.train.compile_layers",
    ),
    "straight head": Switches(
        functions={"lrc.models.pair_head.is_cheaper_straight": lambda *sizes, positions: True},
        sign="lrc.models.pair_head.is_cheaper_straight",
    ),
    "head in chunks": Switches(functions={"lrc.clone.head.chunk_positions": lambda vocabulary, positions: 7}),
    "head in blocks": Switches(
        functions={
            "lrc.clone.head.stays_in_cache": stays_in_cache,
            "lrc.clone.head.BLOCK_BYTES": 3 * torch.float32.itemsize * len(WORDS),
        }
    ),
    "short attention": Switches(
        functions={"lrc.models.short_attention.is_short": as_in_bfloat16}, sign="lrc.models.short_attention._fill"
    ),
    "fused optimiser": Switches(functions={"lrc.training.engine.make_optimizer": make_optimizer}),
}
TOGETHER = {
    "all, layers as they are": [name for name in FAST if name not in ("compiled", "recomputed")],
    "all, compiled": [name for name in FAST if name != "kept products"],
}
CASES = {name: [name] for name in FAST} | TOGETHER


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a run has left."""

    losses: list[dict[str, float]]
    """Of each step, every term, and the gradient's norm."""
    gradients: list[Tensor]
    """Of the first step."""
    trained: dict[str, Tensor]
    """After the last."""


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs; they share a teacher, rows, and the calibrated start that the first one leaves there."""
    return tmp_path_factory.mktemp("paths")


@pytest.fixture(scope="module")
def references(root: Path) -> dict[str, Found]:
    return {objective: run(root, f"slow-{objective}", objective, []) for objective in OBJECTIVES}


def run(root: Path, name: str, objective: str, paths: list[str]) -> Found:
    """Train as `lrc train` does, from the common start, with these paths on and all others off."""
    chosen = [SLOW, *(FAST[path] for path in paths)]
    settings = {key: value for switches in chosen for key, value in switches.settings.items()}
    functions = {target: value for switches in chosen for target, value in switches.functions.items()}
    recipe = tiny_recipe(
        root,
        run=str(root / name.replace(", ", "-").replace(" ", "-")),
        data__held_out=None,
        train__max_steps=STEPS,
        train__save_steps=STEPS,
        train__log_steps=1,
        train__batch_size=4,
        train__gradient_accumulation_steps=2,
        **OBJECTIVES[objective],
        **settings,
    )
    signs = [switches.sign for switches in chosen if switches.sign is not None]
    seen: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for target, value in functions.items():
            patch.setattr(target, value)
        for sign in signs:
            patch.setattr(sign, counted(resolve_name(sign), seen, sign))
        gradients = first_gradients(patch)
        last = train(recipe, keep_start=root / "start.safetensors")
    assert [sign for sign in signs if not seen[sign]] == []
    lines = [json.loads(line) for line in (last.parent / "metrics.jsonl").read_text().splitlines()]
    losses = [terms(line) for line in lines if line["kind"] == "train"]
    assert len(losses) == STEPS
    return Found(losses=losses, gradients=gradients, trained=load_file(last / "model.safetensors"))


def counted(function: Callable[..., Any], seen: Counter[str], name: str) -> Callable[..., Any]:
    """Return the function, its calls counted."""

    def run(*arguments: Any, **options: Any) -> Any:
        seen[name] += 1
        return function(*arguments, **options)

    return run


def first_gradients(patch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return a list that gets the gradients of the first step, as the optimiser sees them."""
    found: list[Tensor] = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW) -> None:
        if not found:
            found.extend(value.grad.clone() for group in self.param_groups for value in group["params"])
        step(self)

    patch.setattr(torch.optim.AdamW, "step", recorded)
    return found


def terms(line: dict[str, Any]) -> dict[str, float]:
    """Take the numbers of a step from its line of the log."""
    found = {name: line[name] for name in ("loss", "lm_loss", "kl_loss", "clone_loss", "gradient_norm")}
    return found | {f"{name} {layer}": value for name, of in line["clone"].items() for layer, value in enumerate(of)}


def assert_same(found: Found, expected: Found, start: dict[str, Tensor]) -> None:
    for ours, theirs in zip(found.losses, expected.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=LIMIT, abs=ROUNDING)
    whole = float(torch.cat([gradient.flatten() for gradient in expected.gradients]).norm())
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        assert float((ours - theirs).norm()) <= LIMIT * whole
    assert found.trained.keys() == expected.trained.keys() == start.keys()
    for name, before in start.items():
        update, theirs = (weights[name].double() - before for weights in (found.trained, expected.trained))
        # of the tensor's size, not of its update's: a weight's last bit is 1e-7 of it, and AdamW divides by the root
        # of the second moment, which makes the rounding of a small gradient a share of a full step
        limit = LIMIT * float(expected.trained[name].norm())
        assert float(theirs.norm()) > 100 * limit, name
        assert float((update - theirs).norm()) <= limit, name


@pytest.mark.parametrize("case", CASES)
def test_a_fast_path_gives_the_losses_and_updates_of_the_slow_one(
    root: Path, references: dict[str, Found], case: str
) -> None:
    found = run(root, case, "default", CASES[case])
    assert_same(found, references["default"], load_file(root / "start.safetensors"))


def test_all_fast_paths_together_give_those_of_the_published_objective(
    root: Path, references: dict[str, Found]
) -> None:
    found = run(root, "published", "published", TOGETHER["all, compiled"])
    assert_same(found, references["published"], load_file(root / "start.safetensors"))
