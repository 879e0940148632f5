"""The calibrated walk: its errors and its head against stock models, and what it leaves as it was."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.clone.initialise import principal_basis
from lrc.clone.sites import Variant
from lrc.models.calibrate import calibrate, layer_keywords
from lrc.models.pair_model import PairModel
from lrc.models.start import fill_start
from lrc.models.stream import stream_moments
from lrc.models.tiny import random_model
from lrc.start_config import StartConfig
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.stock_student import num_hooks, recorded, stock_student
from tests.models.test_layer_fit import explicit_fit, id_batches
from tests.models.test_pair import make_pair
from tests.tiny import tiny_teacher

TIED = Variant(tie_embedding_projection=True)
IO = Variant(attention_projections="io", ffn_projections="io")
CORRECTED, TUNED = Variant(correction="outputs"), Variant(correction="mlp")
WINDOWED = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}


@dataclass
class Calibrated:
    """A calibrated pair, and every layer's output and the last norm's of both stock models."""

    pair: PairModel
    basis: Tensor
    before: dict[str, Tensor]
    """Trained tensors of the `pca` start, float64."""
    errors: list[float]
    reported: list[tuple[str, int, int]]
    hooks: tuple[int, int]
    """Hooks on the teacher before and after."""
    teacher: Any
    teacher_outputs: dict[str, list[Tensor]]
    """`[rows, d]` batches."""
    student_outputs: dict[str, list[Tensor]]


@torch.no_grad()
def calibrated(family: str, variant: Variant, num_batches: int = 6, **changes: Any) -> Calibrated:
    teacher = tiny_teacher(family, **changes)
    pair, batches = make_pair(teacher, 16, variant), id_batches(num_batches)
    fill_start(pair, teacher, StartConfig(method="pca"), batches, seed=0)
    basis = principal_basis(stream_moments(pair, teacher, batches, lambda *_: None).second_moment, 16)
    before = {name: parameter.double() for name, parameter in pair.trained().items()}
    reported: list[tuple[str, int, int]] = []
    hooks = num_hooks(teacher)
    keywords = layer_keywords(pair, teacher, batches[0])
    errors, kept = calibrate(pair, teacher, basis, batches, keywords, lambda *report: reported.append(report), passes=2)
    assert not kept
    counts = (hooks, num_hooks(teacher))
    exact = teacher.double()
    outputs = []
    for model in (exact, stock_student(pair, exact)):
        with recorded(model, ["model.layers.0", "model.layers.1", "model.norm"]) as calls:
            for ids in batches:
                model(input_ids=ids, use_cache=False)
        outputs.append({name: [output.flatten(0, 1) for _, output in made] for name, made in calls.items()})
    return Calibrated(pair, basis, before, errors, reported, counts, exact, *outputs)


@pytest.mark.parametrize(
    ("family", "variant", "changes"),
    [
        ("llama", Variant(), {}),
        ("llama", IO, {}),
        ("qwen3", TIED, {"tie_word_embeddings": True}),
        ("gemma3_text", Variant(), WINDOWED),
        ("llama", CORRECTED, {}),
        ("gemma3_text", CORRECTED, WINDOWED),
        ("llama", TUNED, {}),
        ("gemma3_text", TUNED, WINDOWED),
        ("llama", replace(IO, correction="mlp"), {}),
    ],
    ids=[
        "all",
        "io",
        "tied",
        "post-norms",
        "corrected",
        "corrected-post-norms",
        "tuned",
        "tuned-post-norms",
        "tuned-io",
    ],
)
def test_the_errors_are_those_of_the_stock_merged_student(
    family: str, variant: Variant, changes: dict[str, Any]
) -> None:
    found = calibrated(family, variant, **changes)
    expected = []
    for layer in ("model.layers.0", "model.layers.1"):
        wanted = torch.cat(found.teacher_outputs[layer]) @ found.basis
        off = (wanted - torch.cat(found.student_outputs[layer])).square().sum(1)
        expected.append(float((off / wanted.square().sum(1)).mean()))
    assert found.errors == pytest.approx(expected, rel=1e-3)
    assert found.reported == [("calibrate", 0, 2), ("calibrate", 1, 2), ("calibrate", 2, 2)]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_head_of_its_own_regresses_the_teacher_s_last_state_on_the_student_s(family: str) -> None:
    found = calibrated(family, Variant(), tie_word_embeddings=True)
    inputs, targets = found.student_outputs["model.norm"], found.teacher_outputs["model.norm"]
    every = [torch.ones(len(rows), dtype=torch.float64) for rows in inputs]
    expected = explicit_fit(inputs, targets, found.before["projections.lm_head"].T, every).T
    head = found.pair.trained()["projections.lm_head"].double()
    torch.testing.assert_close(head, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_shared_projection_leaves_the_last_gain_to_fit_the_logits(family: str, tied: bool) -> None:
    """Every logit of every position is one row of an explicit least squares in the gain."""
    found = calibrated(family, TIED, 3, tie_word_embeddings=tied)
    projection = found.pair.trained()["projections.model.embed_tokens"].double()
    assert torch.equal(projection, found.before["projections.model.embed_tokens"])
    head = found.teacher.get_output_embeddings().weight
    stream = torch.cat(found.student_outputs["model.layers.1"])
    normed = stream / (stream.square().mean(1, keepdim=True) + found.pair.student_config.rms_norm_eps).sqrt()
    rows = (head @ projection)[None] * normed[:, None]
    logits = torch.cat(found.teacher_outputs["model.norm"]) @ head.T
    gain = torch.linalg.lstsq(rows.flatten(0, 1), logits.flatten()[:, None]).solution[:, 0]
    stored = found.pair.trained()["gains.model.norm.weight"].double()
    expected = gain - 1 + found.pair.architecture.scales.unit_gain
    torch.testing.assert_close(stored, expected, rtol=1e-3, atol=1e-3)


def test_a_fitted_gain_multiplies_the_last_norm_s_bias_too() -> None:
    teacher = random_model(FAMILY_CONFIGS["starcoder2"]())
    pair, batches = make_pair(teacher, 16, TIED), id_batches(3)
    fill_start(pair, teacher, StartConfig(method="pca"), batches, seed=0)
    gain, bias = (pair.trained()[f"gains.model.norm.{name}"].detach() for name in ("weight", "bias"))
    before = bias.clone()
    basis = principal_basis(stream_moments(pair, teacher, batches, lambda *_: None).second_moment, 16)
    calibrate(pair, teacher, basis, batches, layer_keywords(pair, teacher, batches[0]), lambda *_: None, passes=1)
    assert float(before.abs().max()) > 0.01
    assert float((gain - 1).abs().max()) > 0.01
    torch.testing.assert_close(bias, before * gain)


def test_the_embedding_and_the_gains_before_readers_stay_the_start_s() -> None:
    found = calibrated("llama", Variant(), 3)
    trained = found.pair.trained()
    kept = {name for name, parameter in trained.items() if torch.equal(parameter.double(), found.before[name])}
    assert kept == {"projections.model.embed_tokens", *(name for name in trained if name.startswith("gains."))}


def test_nothing_of_the_walk_is_left_behind() -> None:
    found = calibrated("llama", Variant(), 3)
    assert found.hooks[0] == found.hooks[1]
    assert found.pair.lockstep.teacher_stream is None
    assert not found.pair.lockstep.terms
    assert all(parameter.grad is None and parameter.requires_grad for parameter in found.pair.trained().values())
