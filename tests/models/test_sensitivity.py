"""The sensitivity of the stream against plain gradients, and against the Fisher information itself."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrc.clone.sites import Variant
from lrc.config import ObjectiveConfig
from lrc.errors import NumericsError
from lrc.models import sensitivity
from lrc.models.pair_model import PairModel
from lrc.models.sensitivity import stream_sensitivity
from lrc.models.stream import stream_moments
from lrc.models.tiny import random_model
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.stock_student import num_hooks
from tests.models.test_pair import make_pair
from tests.models.test_stream import id_batches, silent
from tests.models.tiny_configs import FAMILIES
from tests.tiny import tiny_teacher

POINTS = {
    "cohere2": ("input_layernorm",),
    "gemma2": ("input_layernorm", "pre_feedforward_layernorm"),
    "gemma3_text": ("input_layernorm", "pre_feedforward_layernorm"),
    "olmo2": ("self_attn", "mlp"),
    "phi": ("input_layernorm",),
}
"""Modules of a layer that get the stream, where they are not llama's: one norm for two stages, or none at all."""


def plain_gradients(teacher: Any, ids: Tensor, labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Each point's stream, and the loss's gradient with respect to something that is added to what is read there."""
    streams: list[Tensor] = []
    added: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, Any]:
        read = args[0] if args else keywords["hidden_states"]
        streams.append(read.detach())
        added.append(torch.zeros_like(read, requires_grad=True))
        if args:
            return (read + added[-1], *args[1:]), keywords
        return args, keywords | {"hidden_states": read + added[-1]}

    names = POINTS.get(teacher.config.model_type, ("input_layernorm", "post_attention_layernorm"))
    last = "final_layernorm" if teacher.config.model_type == "phi" else "norm"
    points = [layer.get_submodule(name) for layer in teacher.model.layers for name in names]
    handles = [
        point.register_forward_pre_hook(hook, with_kwargs=True)
        for point in (*points, teacher.model.get_submodule(last))
    ]
    logits = teacher(ids).logits
    for handle in handles:
        handle.remove()
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return streams, list(torch.autograd.grad(loss, added))


OTHERS = ("cohere2", "gemma2", "gpt_oss", "granite", "mixtral", "olmo2", "phi", "qwen3_moe", "starcoder2")
"""A norm for two stages, a soft-cap, sinks, a factor on logits, no norm before readers, a bias of the head, experts."""


EXPERTS = ("gpt_oss", "mixtral", "qwen3_moe")
"""Their products of groups have no float64."""


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_both_moments_are_means_over_all_tokens_and_points(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [torch.randint(4, 48, ids.shape, generator=torch.Generator().manual_seed(7)) for ids in id_batches()]
    left = [labels.flatten() for labels in drawn]
    monkeypatch.setattr(sensitivity, "_drawn_labels", lambda *_: left.pop(0))

    def build() -> Any:
        return tiny_teacher(family) if family in FAMILIES else random_model(FAMILY_CONFIGS[family]())

    teacher = build()
    pair = PairModel(teacher, hidden_size=16, variant=Variant(), objective=ObjectiveConfig())
    found = stream_sensitivity(pair, teacher, id_batches(), silent)
    exact = build() if family in EXPERTS else build().double()
    normed, answers = [], []
    for ids, labels in zip(id_batches(), drawn, strict=True):
        for stream, gradient in zip(*plain_gradients(exact, ids, labels), strict=True):
            size = stream.square().mean(-1, keepdim=True).sqrt()
            normed.append((stream / size).flatten(0, 1))
            answers.append((gradient * size)[:, 1:].flatten(0, 1))  # a row's first token is left out
    rows, gradients = torch.cat(normed).double(), torch.cat(answers).double()
    num_points = len(rows) // (32 + 5 + 27)
    assert gradients.shape == ((30 + 4 + 24) * num_points, 32)
    expected = gradients.T @ gradients / len(gradients)
    assert found.sensitivity.dtype == torch.float64
    torch.testing.assert_close(found.second_moment, rows.T @ rows / len(rows), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.sensitivity, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


def test_a_teacher_in_bfloat16_has_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a layer runs again its attention must be the one that ran before."""
    monkeypatch.setattr(sensitivity, "_drawn_labels", lambda inputs, *_: torch.arange(len(inputs)) % 48)
    exact, rounded = tiny_teacher("llama"), tiny_teacher("llama").bfloat16()
    plain, found = (
        stream_sensitivity(make_pair(teacher, 16), teacher, id_batches(), silent).sensitivity
        for teacher in (exact, rounded)
    )
    assert 1e-6 < float((found - plain).norm() / plain.norm()) < 0.05


def test_the_second_moment_is_that_of_the_forward_alone() -> None:
    teacher = tiny_teacher("llama")
    pair = make_pair(teacher, 16)
    for is_centred in (False, True):
        found = stream_sensitivity(pair, teacher, id_batches(), silent, is_centred=is_centred).second_moment
        plain = stream_moments(pair, teacher, id_batches(), silent, is_centred=is_centred).second_moment
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-6)  # float32 sums in another order


def test_labels_are_drawn_from_the_teacher_so_the_mean_is_the_fisher_information() -> None:
    """At the last norm's input `J.T (diag p - p p.T) J` is at hand; here its mean over the tokens of one row."""
    teacher = tiny_teacher("llama")
    with torch.no_grad():
        teacher.get_output_embeddings().weight.mul_(40)  # some next tokens are far likelier than others
    ids = torch.arange(5, 13)[None]
    pair = make_pair(teacher, 16)
    only_last: list[Tensor] = []
    original = sensitivity.ProductSum.add

    def last_point(own: Any, a: Tensor, b: Tensor) -> None:
        only_last.append(a) if len(only_last) < 2 else None
        original(own, a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity.ProductSum, "add", last_point)
        stream_sensitivity(pair, teacher, [ids.expand(4000, -1)], silent)
    sampled = only_last[1].double()  # gradients come in backward order: the last norm's first

    states: list[Tensor] = []
    handle = teacher.model.norm.register_forward_pre_hook(lambda _, args: states.append(args[0].detach()[0]))
    teacher(ids)
    handle.remove()
    exact = tiny_teacher("llama").double()
    with torch.no_grad():
        exact.get_output_embeddings().weight.mul_(40)
    expected = torch.zeros(32, 32, dtype=torch.float64)
    for state in states[0][1:].double():
        size = state.square().mean().sqrt()
        jacobian: Any = torch.autograd.functional.jacobian(lambda row: exact.lm_head(exact.model.norm(row)), state)
        chances = exact.lm_head(exact.model.norm(state)).softmax(-1)
        expected += size**2 * jacobian.T @ (torch.diag(chances) - torch.outer(chances, chances)) @ jacobian / 7
    assert float(chances.max()) > 0.3
    found = sampled.T @ sampled / len(sampled)
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_a_seed_draws_the_same_labels_and_another_one_others() -> None:
    teacher = tiny_teacher("llama")
    pair = make_pair(teacher, 16)
    first, again, other = (
        stream_sensitivity(pair, teacher, id_batches(), silent, seed=seed).sensitivity for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, rtol=1e-3)


def test_a_layer_runs_again_for_its_gradient_and_is_left_as_it_was() -> None:
    teacher = tiny_teacher("llama")
    pair, hooks, runs = make_pair(teacher, 16), num_hooks(teacher), 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    handle = teacher.model.layers[0].mlp.register_forward_pre_hook(count)
    stream_sensitivity(pair, teacher, id_batches(), silent)
    handle.remove()
    assert runs == 2 * 3
    assert num_hooks(teacher) == hooks
    assert all("forward" not in layer.__dict__ for layer in teacher.model.layers)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_hooks_and_layers_are_mended_after_an_error() -> None:
    teacher = tiny_teacher("llama")
    pair, hooks = make_pair(teacher, 16), num_hooks(teacher)

    def fail(stage: str, done: int, total: int) -> None:
        if done == 1:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stream_sensitivity(pair, teacher, id_batches(), fail)
    assert num_hooks(teacher) == hooks
    assert all("forward" not in layer.__dict__ for layer in teacher.model.layers)


def test_states_that_are_not_finite_are_an_error_before_labels_are_drawn() -> None:
    teacher = tiny_teacher("llama")
    pair = make_pair(teacher, 16)
    with torch.no_grad():
        teacher.model.layers[1].mlp.down_proj.weight[0, 0] = math.inf
    with pytest.raises(NumericsError, match=r"states \(float32\) are not finite .*=float32"):
        stream_sensitivity(pair, teacher, id_batches(), silent)
    with pytest.raises(NumericsError, match=r"states \(float32\) are not finite"):
        stream_moments(pair, teacher, id_batches(), silent)


def test_rows_of_one_token_have_no_sensitivity() -> None:
    teacher = tiny_teacher("llama")
    found = stream_sensitivity(make_pair(teacher, 16), teacher, [torch.tensor([[5], [6]])], silent)
    assert not found.sensitivity.any()


def test_progress_tells_of_every_batch_and_first_of_none() -> None:
    teacher, reported = tiny_teacher("llama"), []
    stream_sensitivity(make_pair(teacher, 16), teacher, id_batches(), lambda *report: reported.append(report))
    assert reported == [("basis", done, 3) for done in range(4)]


def test_a_kept_forward_of_a_layer_s_own_comes_back() -> None:
    teacher = tiny_teacher("llama")
    pair, layer = make_pair(teacher, 16), teacher.model.layers[1]
    own = layer.forward
    layer.forward = own
    stream_sensitivity(pair, teacher, id_batches(), silent)
    assert layer.__dict__["forward"] is own
