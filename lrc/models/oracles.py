"""The oracles: checks with a known answer that prove a family (or one teacher) before anything is spent on it.

At the teacher's own width, projections of ones on the diagonal must give the teacher's logits; at a narrower width the
merged stock model must equal the factored student, gradients must reach every trained tensor, a few steps must lower
the loss, and the stock model must survive saving and generate alike with and without a cache.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lrc.clone.head import IGNORED_LABEL
from lrc.clone.sites import Variant
from lrc.config import ObjectiveConfig
from lrc.errors import ConfigError
from lrc.models.merge_plan import merge_plan, student_tensor
from lrc.models.pair_model import PairModel, StepCounts
from lrc.models.part import is_bias
from lrc.models.start import fill_start
from lrc.models.stock import stock_model
from lrc.models.tiny import narrow_size, random_model, tiny_config
from lrc.start_config import StartConfig

TOLERANCE = 1e-4
"""Largest difference of two logits as a share of the largest logit, float32."""
REQUIRED = ("identity", "merged = factored", "gradient reaches all")
"""Oracles that a family must pass before a run is spent on it; the others may fail for what its stock class lacks."""
STEPS = 5
LEARNING_RATE = 3e-3
Check = Callable[[Any], tuple[bool, str]]
"""Takes a teacher; returns whether it passes, and what was found."""


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """One check's outcome."""

    name: str
    passed: bool
    found: str
    """What was measured, or why it failed."""


def run_oracles(
    teacher: Any, *, hidden_size: int | None = None, report: Callable[[Oracle], None] = lambda result: None
) -> list[Oracle]:
    """Run every oracle on a teacher in float32.

    Args:
        teacher: Stock causal LM, frozen, in float32.
        hidden_size: Width of the student; None: about half of the teacher's.
        report: Receives each outcome when its oracle ends.
    """
    results = []
    for name, oracle in _oracles(narrow_size(teacher.config) if hidden_size is None else hidden_size).items():
        results.append(_run(name, oracle, teacher))
        report(results[-1])
    return results


def require_family(config: Any) -> None:
    """Refuse a family that fails one of the `REQUIRED` oracles on a tiny random model of its config.

    Raises:
        ConfigError: An oracle fails; a student would be wrong, or part of it would stay at its start values (the
            indexers of DeepSeek V3.2, which run without gradients).
    """
    tiny = random_model(tiny_config(config))
    oracles = _oracles(narrow_size(tiny.config))
    for name in REQUIRED:
        result = _run(name, oracles[name], tiny)
        if not result.passed:
            raise ConfigError(
                f"{config.model_type} can't be cloned: a tiny random model of it fails the {name} oracle "
                f"({result.found}). A student of it would be wrong."
            )


def _oracles(narrow: int) -> dict[str, Check]:
    return {
        "identity": _identity,
        "merged = factored": partial(_merged, narrow),
        "gradient reaches all": partial(_gradients, narrow),
        "five steps lower the loss": partial(_steps, narrow),
        "export and reload": partial(_reload, narrow),
        "cache = no cache": partial(_cache, narrow),
    }


def _run(name: str, oracle: Check, teacher: Any) -> Oracle:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            passed, found = oracle(teacher)
    except Exception as error:  # noqa: BLE001  a family may break in any way; its text is the reason shown
        passed, found = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Oracle(name=name, passed=passed, found=found)


def _identity(teacher: Any) -> tuple[bool, str]:
    pair = _make_pair(teacher, teacher.config.hidden_size)
    tensors = dict(teacher.named_parameters())
    with torch.no_grad():
        for name, parameter in pair.trained().items():
            is_projection = name.startswith("projections.")
            parameter.copy_(torch.eye(len(parameter)) if is_projection else tensors[name.removeprefix("gains.")])
        expected = teacher(_ids(teacher), use_cache=False).logits
        # the pair's own teacher too: what it clones from and distils must be the stock model
        return _compare(torch.stack(pair.logits(_ids(teacher))), torch.stack((expected, expected)))


def _merged(narrow: int, teacher: Any) -> tuple[bool, str]:
    pair = _random_pair(teacher, narrow)
    with torch.no_grad():
        merged = merged_student(pair, teacher)(_ids(teacher), use_cache=False).logits
        # the teacher's too: what layers hand on beside the stream must not be the student's there
        own = teacher(_ids(teacher), use_cache=False).logits
        return _compare(torch.stack((merged, own)), torch.stack(pair.logits(_ids(teacher))))


def _gradients(narrow: int, teacher: Any) -> tuple[bool, str]:
    pair = _random_pair(teacher, narrow)
    _objective(pair, _ids(teacher)).backward()
    trained = pair.trained()
    dead = [name for name, tensor in trained.items() if tensor.grad is None or float(tensor.grad.abs().max()) == 0]
    return not dead, f"{dead[0]} gets none" if dead else f"{len(trained)} tensors"


def _steps(narrow: int, teacher: Any) -> tuple[bool, str]:
    pair, ids = _make_pair(teacher, narrow), _ids(teacher)
    fill_start(pair, teacher, StartConfig(method="pca"), [ids], seed=0)
    optimizer = torch.optim.AdamW(pair.trained().values(), lr=LEARNING_RATE)
    losses = []
    for _ in range(STEPS + 1):
        optimizer.zero_grad()
        loss = _objective(pair, ids)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[-1] < losses[0], f"{losses[0]:.3g} to {losses[-1]:.3g}"


def _reload(narrow: int, teacher: Any) -> tuple[bool, str]:
    student = merged_student(_random_pair(teacher, narrow), teacher)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        student.save_pretrained(folder)
        again: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return _compare(again(_ids(teacher), use_cache=False).logits, student(_ids(teacher), use_cache=False).logits)


def _cache(narrow: int, teacher: Any) -> tuple[bool, str]:
    try:
        theirs = _cache_error(teacher)
    except Exception as error:  # noqa: BLE001  the stock class is not ours to mend
        return True, f"the teacher itself can't run with a cache ({type(error).__name__})"
    off = _cache_error(merged_student(_random_pair(teacher, narrow), teacher))
    if off is None or theirs is None:
        return True, "keeps no cache of keys and values"
    if off >= TOLERANCE and theirs >= TOLERANCE:
        return True, f"the teacher's own logits differ by {theirs:.0e} with a cache, the student's by {off:.0e}"
    return off < TOLERANCE, f"logits differ by {off:.0e} of the largest"


def _cache_error(model: Any) -> float | None:
    """Relative difference of the last logits with a cache of all before; None if the model keeps none."""
    ids = _ids(model)
    with torch.no_grad():
        known = getattr(model(ids[:, :-1], use_cache=True), "past_key_values", None)
        if known is None:
            return None
        expected = model(ids, use_cache=False).logits[:, -1]
        last = model(ids[:, -1:], past_key_values=known, use_cache=True).logits[:, -1]
    return float((last - expected).abs().max() / expected.abs().max())


def _ids(teacher: Any) -> Tensor:
    size = min(48, teacher.config.vocab_size)
    device = next(teacher.parameters()).device
    return torch.randint(0, size, (2, 12), generator=torch.Generator().manual_seed(1)).to(device)


def _make_pair(teacher: Any, size: int) -> PairModel:
    return PairModel(teacher, hidden_size=size, variant=Variant(), objective=ObjectiveConfig()).train()


def _random_pair(teacher: Any, size: int) -> PairModel:
    pair = _make_pair(teacher, size)
    unit = pair.architecture.scales.unit_gain
    with torch.no_grad():
        for name, parameter in pair.trained().items():
            noise = torch.randn_like(parameter)
            if name.startswith("projections."):
                parameter.copy_(noise * parameter.shape[0] ** -0.5)
            else:
                parameter.copy_((0.0 if is_bias(name) else unit) + 0.1 * noise)
    return pair


def _objective(pair: PairModel, ids: Tensor) -> Tensor:
    labels = torch.full_like(ids, IGNORED_LABEL)
    labels[:, :-1] = ids[:, 1:]
    counts = StepCounts(labels=int((labels != IGNORED_LABEL).sum()), positions=ids.numel(), sequences=ids.shape[0])
    return pair(ids, labels, torch.ones_like(ids, dtype=torch.bool), counts).objective  # type: ignore[no-any-return]


def merged_student(pair: PairModel, teacher: Any) -> Any:
    """Make the stock model of the pair's student, merged in float32 by the plan that export uses."""
    plan = merge_plan(pair.architecture, pair.variant, pair.dense)
    stored = teacher.state_dict()
    trained = {name: parameter.detach() for name, parameter in pair.stored().items()}
    student: Any = stock_model(pair.student_config, dtype=torch.float32)
    weights = {name: student_tensor(plan, name, stored[name], trained) for name in plan.names}
    left = student.load_state_dict(weights, strict=False)
    lacking = set(left.missing_keys) - {pair.architecture.head}
    assert not lacking and not left.unexpected_keys, (lacking, left.unexpected_keys)
    return student.to(next(teacher.parameters()).device).eval().requires_grad_(False)


def _compare(found: Tensor, expected: Tensor) -> tuple[bool, str]:
    off = float((found - expected).abs().max() / expected.abs().max())
    return off < TOLERANCE, f"logits differ by {off:.0e} of the largest"
