"""Moments of the teacher's stream against a plain recomputation from its hidden states."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.clone.sites import Variant
from lrc.config import ObjectiveConfig
from lrc.models.pair_model import PairModel
from lrc.models.stream import norm_magnitudes, stream_moments, stream_readers, subtracts_mean
from lrc.models.tiny import random_model
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.stock_student import num_hooks, recorded
from tests.models.test_pair import make_pair
from tests.models.tiny_configs import FAMILIES
from tests.tiny import tiny_teacher


def id_batches() -> list[Tensor]:
    """Three batches of unlike shapes: each row is to count alike."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, 48, shape, generator=generator) for shape in ((2, 16), (1, 5), (3, 9))]


def silent(*_: Any) -> None: ...


def points(teacher: Any, ids: Tensor) -> list[Tensor]:
    """The stream before each stage and before the last norm: layer inputs, and these plus what attention adds."""
    adds = "post_attention_layernorm" if teacher.config.model_type == "gemma3_text" else "self_attn.o_proj"
    names = [f"model.layers.{layer}.{adds}" for layer in range(2)]
    with torch.no_grad(), recorded(teacher, [*names, "model.layers.1"]) as calls:
        before = teacher(ids, output_hidden_states=True).hidden_states[:2]
    ((_, last),) = calls["model.layers.1"]
    found = []
    for stream, name in zip(before, names, strict=True):
        found += [stream, stream + calls[name][0][1]]
    return [*found, last]


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_means_over_all_tokens_and_points(family: str) -> None:
    teacher = tiny_teacher(family)
    found = stream_moments(make_pair(teacher, 16), teacher, id_batches(), silent)
    exact = tiny_teacher(family).double()
    rows = torch.cat([point.flatten(0, 1) for ids in id_batches() for point in points(exact, ids)])
    assert rows.shape == ((32 + 5 + 27) * 5, 32)
    normed = rows / rows.square().mean(1, keepdim=True).sqrt()
    assert found.second_moment.dtype == found.mean_magnitude.dtype == torch.float64
    torch.testing.assert_close(found.second_moment, normed.T @ normed / len(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean_magnitude, rows.abs().mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_norm_magnitudes_are_means_of_the_gained_directions(family: str) -> None:
    teacher = tiny_teacher(family)
    found = norm_magnitudes(make_pair(teacher, 16), teacher, id_batches(), silent)
    exact = tiny_teacher(family).double()
    is_gemma = teacher.config.model_type == "gemma3_text"
    after = "pre_feedforward_layernorm" if is_gemma else "post_attention_layernorm"
    norms = [f"model.layers.{layer}.{name}" for layer in range(2) for name in ("input_layernorm", after)]
    gains = [exact.get_submodule(name).weight.detach() + is_gemma for name in [*norms, "model.norm"]]
    total, rows = torch.zeros(32, dtype=torch.float64), 0
    for ids in id_batches():
        for point, gain in zip(points(exact, ids), gains, strict=True):
            flat = point.flatten(0, 1)
            total += (flat / (flat.square().mean(1, keepdim=True) + 1e-6).sqrt() * gain).abs().sum(0)
            rows += len(flat)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, total / rows, rtol=1e-4, atol=1e-5)


def test_centred_states_have_no_mean_and_the_stream_s_width_as_their_trace() -> None:
    teacher = tiny_teacher("llama")
    found = stream_moments(make_pair(teacher, 16), teacher, id_batches(), silent, is_centred=True).second_moment
    torch.testing.assert_close(found.sum(0), torch.zeros(32, dtype=torch.float64), rtol=0, atol=1e-4)
    assert float(found.trace()) == pytest.approx(32, rel=1e-5)


@pytest.mark.parametrize(("family", "expected"), [("llama", False), ("cohere2", True), ("starcoder2", True)])
def test_what_a_norm_does_to_a_shifted_input_tells_whether_it_subtracts_the_mean(family: str, expected: bool) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]())
    pair = PairModel(teacher, hidden_size=16, variant=Variant(), objective=ObjectiveConfig())
    assert subtracts_mean(pair, teacher) == expected
    assert subtracts_mean(pair, teacher.bfloat16()) == expected


def test_the_second_moment_has_the_stream_s_width_as_its_trace() -> None:
    teacher = tiny_teacher("llama")
    with torch.no_grad():
        teacher.model.embed_tokens.weight[5] *= 1000  # one massive token weighs as much as any
    found = stream_moments(make_pair(teacher, 16), teacher, [torch.tensor([[5, 6, 7]])], silent)
    assert float(found.second_moment.trace()) == pytest.approx(32, rel=1e-5)


def test_a_teacher_in_bfloat16_is_summed_in_float64() -> None:
    teacher = tiny_teacher("llama").bfloat16()
    found = stream_moments(make_pair(teacher, 16), teacher, id_batches(), silent)
    rows = torch.cat([point.flatten(0, 1) for ids in id_batches() for point in points(teacher, ids)]).double()
    torch.testing.assert_close(found.mean_magnitude, rows.abs().mean(0), rtol=1e-5, atol=1e-7)


def test_progress_tells_of_every_batch_and_first_of_none() -> None:
    teacher, reported = tiny_teacher("llama"), []
    stream_moments(make_pair(teacher, 16), teacher, id_batches(), lambda *report: reported.append(report))
    assert reported == [("basis", done, 3) for done in range(4)]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_readers_of_the_stream_get_each_point_in_the_order_they_run(family: str) -> None:
    teacher, (ids, *_) = tiny_teacher(family), id_batches()
    found: list[Tensor] = []
    with stream_readers(make_pair(teacher, 16), teacher, found.append):
        teacher.model(input_ids=ids, use_cache=False)
    for ours, stock in zip(found, points(teacher, ids), strict=True):
        torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)


def test_hooks_are_gone_after_the_block_also_if_it_fails() -> None:
    teacher = tiny_teacher("llama")
    pair = make_pair(teacher, 16)
    hooks = num_hooks(teacher)

    def fail(_: Tensor) -> None:
        raise RuntimeError("stop")

    def run(use: Callable[[Tensor], None]) -> None:
        with stream_readers(pair, teacher, use):
            assert num_hooks(teacher) == hooks + 5
            teacher.model(input_ids=id_batches()[0], use_cache=False)

    run(silent)
    assert num_hooks(teacher) == hooks
    with pytest.raises(RuntimeError, match="stop"):
        run(fail)
    assert num_hooks(teacher) == hooks
