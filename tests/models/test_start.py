"""Start values: what each method fills in, and that the calibrated one tracks the teacher."""

import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DogeConfig

from lrc.clone.sites import Correction, Variant
from lrc.config import ObjectiveConfig
from lrc.errors import ConfigError, NumericsError
from lrc.evaluation.agreement import measure_pair
from lrc.models import start
from lrc.models.pair_model import PairModel
from lrc.models.start import check_start, fill_start
from lrc.models.stream import norm_magnitudes, run_base, stream_moments
from lrc.models.tiny import random_model
from lrc.start_config import StartConfig
from tests.models.composite_configs import COMPOSITES
from tests.models.family_configs import BASE, FAMILY_CONFIGS
from tests.models.stock_student import stock_student
from tests.models.test_pair import VARIANTS, make_pair
from tests.models.tiny_configs import FAMILIES
from tests.tiny import tiny_teacher


def calibration(batches: int = 10, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 48, (2, 16), generator=generator) for _ in range(batches)]


def held_out() -> list[tuple[Tensor, Tensor]]:
    return [(ids, torch.cat([ids[:, 1:], torch.full((2, 1), -100)], 1)) for ids in calibration(4, seed=9)]


def started(family: str, method: str, size: int = 16, variant: Variant = VARIANTS[0], **settings: Any) -> Any:
    teacher = tiny_teacher(family, tie_word_embeddings=True)
    pair = make_pair(teacher, size, variant)
    report = fill_start(pair, teacher, StartConfig(method=method, **settings), calibration(), seed=0)  # type: ignore[arg-type]
    return pair, report


def test_random_is_the_published_start() -> None:
    pair, report = started("llama", "random")
    again, _ = started("llama", "random")
    assert report.tokens == 0
    for name, parameter in pair.trained().items():
        if name.startswith("gains"):
            assert torch.equal(parameter, torch.ones(16))
        else:
            assert 0.015 < float(parameter.detach().std()) < 0.025
        assert torch.equal(parameter, again.trained()[name])


def test_channel_gives_every_projection_the_same_selection_and_keeps_the_gains() -> None:
    pair, _ = started("llama", "channel")
    projections = [value for name, value in pair.trained().items() if name.startswith("projections")]
    assert all(torch.equal(value, projections[0]) for value in projections)
    assert torch.equal(projections[0].sum(0), torch.ones(16))
    assert set(projections[0].flatten().tolist()) == {0.0, 1.0}
    channels = projections[0].argmax(0)
    gain = dict(tiny_teacher("llama", tie_word_embeddings=True).named_parameters())["model.norm.weight"]
    torch.testing.assert_close(pair.trained()["gains.model.norm.weight"].data, gain[channels])


def test_channels_are_chosen_by_size_on_few_rows_or_by_the_norms_outputs_on_all() -> None:
    teacher = tiny_teacher("llama", tie_word_embeddings=True)
    pair, few = started("llama", "channel")
    other, all_rows = started("llama", "channel", channel_score="normalised")
    scores = {
        "magnitude": stream_moments(pair, teacher, calibration()[:8], lambda *_: None).mean_magnitude,
        "normalised": norm_magnitudes(pair, teacher, calibration(), lambda *_: None),
    }
    assert (few.tokens, all_rows.tokens) == (16 * 16, 20 * 16)  # 15 rows in pairs, and every row
    for found, score in ((pair, "magnitude"), (other, "normalised")):
        selection = found.trained()["projections.model.embed_tokens"].argmax(0)
        assert set(selection.tolist()) == set(scores[score].argsort(descending=True)[:16].tolist())


def test_the_embedding_of_channel_makes_up_for_a_factor_that_grows_with_the_width() -> None:
    pair, _ = started("gemma3_text", "channel")
    teacher = tiny_teacher("gemma3_text", tie_word_embeddings=True)
    channels = pair.trained()["projections.model.layers.0.self_attn.o_proj"].argmax(0)
    ids = torch.arange(4, 48)
    with torch.no_grad():
        entered = teacher.get_input_embeddings()(ids)[:, channels]
        torch.testing.assert_close(stock_student(pair, teacher).get_input_embeddings()(ids), entered)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"gemma3_text"}))
def test_pca_at_full_width_is_the_teacher(family: str) -> None:
    """With d_S = d_T the basis is a rotation, which RMS norms don't see once gains are folded in.

    Gemma 3 is no case of it: gains of the norms behind its writers act channel by channel, so they see the rotation.
    """
    pair, _ = started(family, "pca", size=32)
    assert measure_pair(pair, held_out()).kl < 1e-4


@pytest.mark.parametrize("family", ["cohere2", "phi", "starcoder2"])
def test_pca_at_full_width_is_the_teacher_with_norms_that_subtract_the_mean(family: str) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]())
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    width = teacher.config.hidden_size
    pair = PairModel(teacher, hidden_size=width, variant=VARIANTS[0], objective=ObjectiveConfig()).eval()
    fill_start(pair, teacher, StartConfig(method="pca"), calibration(), seed=0)
    assert measure_pair(pair, held_out()).kl < 1e-4
    plain = PairModel(teacher, hidden_size=width, variant=VARIANTS[0], objective=ObjectiveConfig()).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrc.models.start.subtracts_mean", lambda *_: False)
        fill_start(plain, teacher, StartConfig(method="pca"), calibration(), seed=0)
    assert measure_pair(plain, held_out()).kl > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_calibrated_beats_every_other_start(family: str) -> None:
    found = {method: measure_pair(started(family, method)[0], held_out()).kl for method in ("random", "channel", "pca")}
    pair, report = started(family, "calibrated")
    calibrated = measure_pair(pair, held_out()).kl
    assert calibrated < min(found.values()), (calibrated, found)
    assert len(report.layer_errors) == 2
    assert all(0 < error < 1 for error in report.layer_errors)


@pytest.mark.parametrize("variant", VARIANTS[1:], ids=["io", "tied-projection"])
def test_calibrated_fills_every_variant(variant: Variant) -> None:
    pair, _ = started("llama", "calibrated", variant=variant)
    random, _ = started("llama", "random", variant=variant)
    assert measure_pair(pair, held_out()).kl < measure_pair(random, held_out()).kl


def test_calibrated_at_full_width_is_nearly_the_teacher() -> None:
    pair, report = started("llama", "calibrated", size=32)
    assert max(report.layer_errors) < 1e-2
    assert measure_pair(pair, held_out()).kl < 5e-3


@pytest.mark.parametrize("family", ["gemma3_text"])
def test_a_writer_before_a_norm_adds_the_projected_update_of_the_teacher(family: str) -> None:
    teacher = tiny_teacher(family, tie_word_embeddings=True)
    norm = teacher.model.layers[0].post_attention_layernorm
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.copy_(3 * torch.rand(32, generator=generator) - 1)  # gains of 0 to 3
    pair = make_pair(teacher, 16)
    fill_start(pair, teacher, StartConfig(method="pca"), calibration(), seed=0)
    trained = {name: value.detach().double() for name, value in pair.trained().items()}
    written = torch.randn(400, 32, generator=generator, dtype=torch.float64)
    basis = trained["projections.model.embed_tokens"] / math.sqrt(2)  # sqrt(d_T / d_S) times the basis
    gain = 1 + norm.weight.detach().double()

    def rms(rows: Tensor) -> Tensor:
        return rows.square().mean(1, keepdim=True).sqrt()

    wanted = (gain * written / rms(written)) @ basis
    ours = written @ trained["projections.model.layers.0.self_attn.o_proj"]
    ours = (1 + trained["gains.model.layers.0.post_attention_layernorm.weight"]) * ours / rms(ours)
    plain = written @ basis
    assert torch.nn.functional.cosine_similarity(ours, wanted).min() > 1 - 1e-6
    assert float((ours.norm() / wanted.norm()).log().abs()) < 0.5  # half of white rows lies outside the basis
    assert torch.nn.functional.cosine_similarity(plain, wanted).mean() < 0.95


def test_outlier_channels_become_identity_columns() -> None:
    pair, _ = started("llama", "pca", outlier_channels=3)
    writer = pair.trained()["projections.model.layers.0.self_attn.o_proj"]
    assert torch.equal(writer[:, :3].abs().sum(0), torch.ones(3))
    assert int((writer[:, :3] != 0).sum()) == 3
    torch.testing.assert_close(writer.T @ writer, torch.eye(16), atol=1e-5, rtol=0)


def test_vectors_of_no_norm_act_on_the_projected_stream_as_they_do_on_the_teacher_s() -> None:
    """Doge multiplies the stream by a trained vector before each block's output joins it."""
    teacher: Any = random_model(DogeConfig(**BASE))
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{index}.{name}_residual" for index in range(3) for name in ("input", "post_attention")]
    with torch.no_grad():
        for name in names:
            teacher.get_parameter(name).copy_(2 * torch.rand(32, generator=generator))
    pair = make_pair(teacher, 16)
    fill_start(pair, teacher, StartConfig(method="pca"), calibration(), seed=0)
    trained = {name: value.detach().double() for name, value in pair.trained().items()}
    basis = trained["projections.model.layers.0.self_attn.o_proj"]
    for name in names:
        expected = (basis.T @ teacher.get_parameter(name).double().diag() @ basis).diagonal()
        torch.testing.assert_close(trained[f"gains.{name}"], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(trained["gains.model.layers.0.input_layernorm.weight"], torch.ones(16, dtype=torch.float64))


def test_a_start_that_can_t_do_what_it_is_to_is_refused_from_the_config() -> None:
    gemma4 = COMPOSITES["gemma4"][0]().text_config
    with pytest.raises(ConfigError, match=r"layers called by position\. Use start\.method=pca"):
        check_start(gemma4, StartConfig(), method="clone")
    check_start(gemma4, StartConfig(method="pca"), method="clone")
    check_start(gemma4, StartConfig(), method="only_kd")
    outliers = {method: StartConfig(method=method, outlier_channels=2) for method in ("channel", "pca", "calibrated")}  # type: ignore[arg-type]
    for method in ("pca", "calibrated"):
        with pytest.raises(ConfigError, match=r"start\.outlier_channels must be 0 for starcoder2, found 2"):
            check_start(FAMILY_CONFIGS["starcoder2"](), outliers[method], method="clone")
        check_start(FAMILY_CONFIGS["llama"](), outliers[method], method="clone")
    check_start(FAMILY_CONFIGS["starcoder2"](), outliers["channel"], method="clone")
    check_start(FAMILY_CONFIGS["starcoder2"](), StartConfig(), method="clone")


def test_outlier_channels_are_not_dropped_for_a_basis_that_keeps_the_mean() -> None:
    teacher = random_model(FAMILY_CONFIGS["starcoder2"]())
    with pytest.raises(ConfigError, match=r"start\.outlier_channels must be 0"):
        fill_start(
            make_pair(teacher, 16), teacher, StartConfig(method="pca", outlier_channels=2), calibration(), seed=0
        )


def test_the_graph_of_a_batch_is_freed_before_the_next_one_runs() -> None:
    """The gradient hooks of a batch hold its streams as long as the last states live."""
    teacher = tiny_teacher("llama")
    last: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    handle = teacher.get_submodule("model.layers.0").register_forward_pre_hook(
        lambda *_: alive.extend(states() is not None for states in last)
    )
    run_base(
        make_pair(teacher, 16),
        teacher,
        calibration(3),
        "basis",
        lambda *_: None,
        use=lambda states: last.append(weakref.ref(states)),
    )
    handle.remove()
    assert alive == [False] * 3  # one before the second batch, two before the third


@pytest.mark.parametrize(("row", "tokens", "count"), [(2048, 0, 2), (2048, 64, 2), (8, 64, 4), (8, 9999, 10)])
def test_gradients_take_the_fronts_of_some_rows(
    row: int, tokens: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten batches of 2 x 16 tokens a ninth is 36 tokens, so two of the batches."""
    found: list[Tensor] = []
    ours = start.stream_sensitivity

    def watch(pair: Any, teacher: Any, batches: list[Tensor], *rest: Any, **settings: Any) -> Any:
        found.extend(batches)
        return ours(pair, teacher, batches, *rest, **settings)

    monkeypatch.setattr(start, "stream_sensitivity", watch)
    monkeypatch.setattr(start, "SENSITIVE_ROW", row)
    monkeypatch.setattr(start, "SENSITIVE_TOKENS", tokens)
    started("llama", "calibrated")
    assert len(found) == count
    assert all(torch.equal(part, batch[:, :row]) for part, batch in zip(found, calibration(), strict=False))


@pytest.mark.parametrize("correction", ["none", "outputs", "mlp"])
def test_a_walk_that_does_not_fit_says_what_to_do(monkeypatch: pytest.MonkeyPatch, correction: Correction) -> None:
    def too_large(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(start, "calibrate", too_large)
    teacher, batches = tiny_teacher("llama"), calibration()
    pair = make_pair(teacher, 16, Variant(correction=correction))
    tokens = sum(batch.numel() for batch in batches)
    with pytest.raises(
        ConfigError, match=rf"too small for .* all {tokens} calibration tokens\. Lower start\.tokens"
    ) as raised:
        fill_start(pair, teacher, StartConfig(), batches, seed=0)
    assert ("student.correction=none" in str(raised.value)) is (correction != "none")


def test_gradients_that_do_not_fit_or_are_not_finite_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = start.stream_sensitivity

    def too_large(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    def broken(*arguments: Any, **settings: Any) -> Any:
        found = ours(*arguments, **settings)
        found.sensitivity[3, 3] = math.nan
        return found

    monkeypatch.setattr(start, "stream_sensitivity", too_large)
    with pytest.raises(ConfigError, match=r"for 32 tokens\. Set start\.basis=principal"):
        started("llama", "calibrated")
    monkeypatch.setattr(start, "stream_sensitivity", broken)
    with pytest.raises(NumericsError, match=r"gradients .* not finite\. Set start\.basis=principal"):
        started("llama", "calibrated")
    started("llama", "calibrated", basis="principal")
