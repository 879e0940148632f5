"""A rotation of the student's channels leaves its logits and spreads its outliers; what it would change, it leaves."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.clone.sites import Variant
from lrc.models.pair_model import PairModel
from lrc.models.rotate import random_rotation, rotate_student, rotation_change
from lrc.models.start import fill_start
from lrc.models.tiny import narrow_size, random_model
from lrc.start_config import StartConfig
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.test_pair import VARIANTS, make_pair
from tests.tiny import tiny_teacher

IDS = torch.randint(4, 48, (2, 40), generator=torch.Generator().manual_seed(1))


def filled(family: str, variant: Variant = VARIANTS[0], **changes: Any) -> PairModel:
    """A pair at its `pca` start: channels in the order of their size."""
    teacher = tiny_teacher(family, **changes)
    pair = make_pair(teacher, 16, variant)
    fill_start(pair, teacher, StartConfig(method="pca"), [IDS], seed=0)
    return pair


def trained(pair: PairModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pair.trained().items()}


@torch.no_grad()
def stream(pair: PairModel) -> Tensor:
    pair.eval()
    return pair.hidden_states(IDS, None)[0].flatten(0, 1)


def test_a_rotation_is_orthogonal_and_the_seed_s() -> None:
    rotation = random_rotation(24, 3)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(24, dtype=torch.float64))
    assert torch.equal(rotation, random_rotation(24, 3))
    assert not torch.allclose(rotation, random_rotation(24, 4))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_logits_stay_and_the_stream_is_turned(family: str, variant: Variant) -> None:
    pair = filled(family, variant)
    with torch.no_grad():
        before, states = pair.eval().logits(IDS), stream(pair)
        assert rotate_student(pair, seed=5) is None
        after = pair.logits(IDS)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-5 * float(before[0].abs().max()))
    assert torch.equal(after[1], before[1])
    torch.testing.assert_close(stream(pair), states @ random_rotation(16, 5).float(), rtol=1e-4, atol=1e-4)


def test_rounding_of_the_pairs_dtype_does_not_refuse_a_rotation() -> None:
    teacher = tiny_teacher("llama").to(torch.bfloat16)
    pair = make_pair(teacher, 16, VARIANTS[0])
    fill_start(pair, teacher, StartConfig(method="pca"), [IDS], seed=0)
    with torch.no_grad():
        before = pair.eval().logits(IDS)[0]
        assert rotate_student(pair, seed=5) is None
        after = pair.logits(IDS)[0]
    assert float((after - before).abs().max()) > 1e-3 * float(before.abs().max())  # more than float32 would do


@pytest.mark.parametrize("family", sorted(FAMILY_CONFIGS))
def test_a_tiny_model_tells_what_the_real_one_would(family: str) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]())
    pair = make_pair(teacher, narrow_size(teacher.config))
    fill_start(pair, teacher, StartConfig(method="pca"), [IDS], seed=0)
    pair.eval()
    with torch.no_grad():
        before = pair.logits(IDS)[0]
        reason = rotate_student(pair, seed=5)
        change = float((pair.logits(IDS)[0] - before).abs().max() / before.abs().max())
        if reason is None:
            assert change < 1e-4
        elif "norms do more" in reason:
            assert rotation_change(pair, seed=5) > 1e-3


def test_channels_become_alike_in_size() -> None:
    pair = filled("llama")

    def unevenness() -> float:
        energy = stream(pair).square().mean(0)
        return float(energy.max() / energy.mean())

    before = unevenness()
    rotate_student(pair, seed=5)
    assert unevenness() < before / 1.5


def test_trained_gains_refuse_a_rotation() -> None:
    pair = filled("llama")
    name = next(name for name in pair.trained() if name.startswith("gains."))
    with torch.no_grad():
        pair.trained()[name][3] = 1.5
    before = trained(pair)
    reason = rotate_student(pair, seed=5)
    assert reason is not None
    assert name.removeprefix("gains.") in reason
    assert all(torch.equal(value, before[name]) for name, value in pair.trained().items())


def test_norms_that_subtract_a_mean_refuse_a_rotation() -> None:
    teacher = random_model(FAMILY_CONFIGS["cohere"]())
    pair = make_pair(teacher, teacher.config.hidden_size // 2)
    fill_start(pair, teacher, StartConfig(method="pca"), [IDS], seed=0)
    before = trained(pair)
    with torch.no_grad():
        logits = pair.eval().logits(IDS)[0]
    reason = rotate_student(pair, seed=5)
    assert reason is not None
    assert "norms do more" in reason
    for name, value in pair.trained().items():
        torch.testing.assert_close(value.detach(), before[name], rtol=0, atol=1e-6, msg=name)
    with torch.no_grad():
        torch.testing.assert_close(pair.logits(IDS)[0], logits, rtol=0, atol=1e-5)
