"""TinyBERT-style terms against the plain formula on whole activations; families without maps are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrc.config import CHECKPOINTING, Checkpointing
from lrc.errors import ConfigError
from lrc.models import tiny_bert
from lrc.models.dense import FROM_SCRATCH
from lrc.models.discovery import discover
from lrc.models.oracles import merged_student
from lrc.models.pair_model import PairModel
from lrc.models.tiny_bert import ALIGNMENT, HIDDEN, attention_module, check_attention_maps, draw_alignment, map_rows
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.test_pair import counts_of
from tests.models.test_pair_model import ragged_batch
from tests.models.test_scratch import scratch_pair
from tests.models.test_unlisted_families import make_config
from tests.models.tiny_configs import FAMILIES
from tests.tiny import tiny_teacher


def plain_terms(pair: PairModel, teacher: Any, ids: Tensor, valid: Tensor) -> Tensor:
    """Mean squared errors, summed over valid positions, `[layers, 2]`: from what both stock models hand out.

    A map's mean is over the keys up to its query.
    """
    student = merged_student(pair, teacher)
    student.set_attn_implementation("eager")
    wanted = {"use_cache": False, "output_hidden_states": True, "output_attentions": True}
    ours, theirs = (model(input_ids=ids, **wanted) for model in (student, teacher))
    # the last of `hidden_states` is after the last norm, so the last layer's is taken from a hook
    last: list[Tensor] = []
    for model in (student, teacher):
        handle = model.model.layers[-1].register_forward_hook(lambda module, args, output: last.append(output))
        model(input_ids=ids, use_cache=False)
        handle.remove()
    states = [(*made.hidden_states[1:-1], end) for made, end in zip((ours, theirs), last, strict=True)]
    rows = []
    for layer in range(2):
        hidden = (states[0][layer] @ pair.alignment - states[1][layer]).square().mean(-1)
        squares = (ours.attentions[layer] - theirs.attentions[layer]).square().mean(1)
        maps = torch.stack([squares[:, query, : query + 1].mean(-1) for query in range(ids.shape[1])], 1)
        rows.append(torch.stack([(hidden * valid).sum(), (maps * valid).sum()]))
    return torch.stack(rows)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("family", FAMILIES)
def test_terms_are_those_of_the_plain_formula(family: str, checkpointing: Checkpointing) -> None:
    teacher = tiny_teacher(family)
    weights: dict[str, Any] = {"clone_error": "raw", "clone_reduction": "sum", "clone_weight": 2.0, "kl_weight": 0.5}
    pair = scratch_pair(teacher, "tiny_bert", **weights)
    pair.set_activation_checkpointing(checkpointing)
    ids, labels, valid = ragged_batch()
    counts = counts_of(labels, valid)
    losses = pair(ids, labels, valid, counts)
    with torch.no_grad():
        expected = plain_terms(pair, teacher, ids, valid)
    torch.testing.assert_close(losses.clone, expected, rtol=1e-4, atol=1e-6)
    total = 0.5 * losses.kl / counts.labels + 2 * expected.sum() / counts.positions
    torch.testing.assert_close(losses.objective.detach(), total, rtol=1e-4, atol=0)
    losses.objective.backward()
    assert all(value.grad is not None and value.grad.any() for value in pair.trained().values())


def test_the_alignment_s_gradient_is_the_formula_s() -> None:
    teacher = tiny_teacher("llama")
    pair = scratch_pair(
        teacher, "tiny_bert", clone_error="raw", clone_reduction="sum", clone_weight=1.0, kl_weight=0.0, lm_weight=0.0
    )
    ids, labels, valid = ragged_batch()
    counts = counts_of(labels, valid)
    pair(ids, labels, valid, counts).objective.backward()
    assert pair.alignment is not None
    (wanted,) = torch.autograd.grad(plain_terms(pair, teacher, ids, valid).sum() / counts.positions, pair.alignment)
    torch.testing.assert_close(pair.alignment.grad, wanted, rtol=1e-4, atol=1e-7)


def test_the_alignment_is_trained_and_drawn_as_a_linear_layer_is() -> None:
    pair = scratch_pair(tiny_teacher("llama"), "tiny_bert")
    assert pair.trained()[ALIGNMENT] is pair.alignment
    drawn = draw_alignment(16, 32, torch.Generator().manual_seed(3))
    assert pair.alignment is not None
    assert torch.equal(pair.alignment, drawn)
    assert drawn.shape == (16, 32)
    assert 0.2 < float(drawn.abs().max()) <= 0.25
    assert abs(float(drawn.mean())) < 0.05


@pytest.mark.parametrize(
    "objective",
    [{"without": ("hidden",)}, {"without": ("all",)}, {"clone_weight": 0.0}],
    ids=["hidden", "all", "weight"],
)
def test_there_is_no_alignment_where_nothing_trains_it(objective: dict[str, Any]) -> None:
    pair = scratch_pair(tiny_teacher("llama"), "tiny_bert", **objective)
    assert pair.alignment is None
    assert HIDDEN not in pair.term_names
    assert pair.trained_shapes(FROM_SCRATCH) == {name: value.shape for name, value in pair.trained().items()}
    ids, labels, valid = ragged_batch()
    losses = pair(ids, labels, valid, counts_of(labels, valid))
    assert losses.clone.shape == (2, len(pair.term_names))
    losses.objective.backward()
    assert [name for name, value in pair.trained().items() if value.grad is None] == []


@pytest.mark.parametrize("error", ["raw", "relative"])
def test_terms_do_not_depend_on_the_rows_beside(error: str) -> None:
    pair = scratch_pair(tiny_teacher("llama"), "tiny_bert", clone_error=error)
    ids, labels, valid = ragged_batch()
    counts = counts_of(labels, valid)
    with torch.no_grad():
        together = pair(ids, labels, valid, counts)
        apart = [
            pair(ids[row, None, :length], labels[row, None, :length], valid[row, None, :length], counts)
            for row, length in enumerate(valid.sum(1).tolist())
        ]
    clone = torch.stack([losses.clone for losses in apart]).sum(0)
    torch.testing.assert_close(clone, together.clone, rtol=1e-4, atol=1e-6)
    objective = torch.stack([losses.objective for losses in apart]).sum()
    torch.testing.assert_close(objective, together.objective, rtol=1e-4, atol=0)


def test_a_map_s_features_are_the_keys_up_to_its_query() -> None:
    maps = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(1)).tril()
    padded = nn.functional.pad(maps, (0, 4, 0, 4))
    found, wide = (map_rows((None, each)).square().mean(-1) for each in (maps, padded))
    torch.testing.assert_close(found, maps.square().sum(3).mean(1) / torch.arange(1, 6))
    torch.testing.assert_close(wide[:, :5], found)
    assert map_rows((None, maps.to(torch.bfloat16))).dtype == torch.bfloat16


def test_terms_can_be_left_out_by_name() -> None:
    teacher = tiny_teacher("llama")
    pair = scratch_pair(teacher, "tiny_bert", without=("attention-map",))
    assert pair.term_names == ("hidden",)
    ids, labels, valid = ragged_batch()
    assert pair(ids, labels, valid, counts_of(labels, valid)).clone.shape == (2, 1)
    with pytest.raises(ConfigError, match=r"names clone terms that this student lacks: mlp-out.*hidden, attention-map"):
        scratch_pair(teacher, "tiny_bert", without=("mlp-out",))


@pytest.mark.parametrize("family", ["qwen3_moe", "gemma2", "gpt_oss", "deepseek_v3"])
def test_families_whose_attention_hands_its_maps_out_pass(family: str) -> None:
    config = FAMILY_CONFIGS[family]()
    architecture = discover(config)
    assert attention_module(architecture, 0) == "self_attn"
    check_attention_maps(config, architecture)


def test_layers_without_attention_maps_are_refused() -> None:
    config = make_config("qwen3_next")  # three layers of linear attention to one of softmax
    with pytest.raises(ConfigError, match="layers whose attention does not hand them out"):
        check_attention_maps(config, discover(config))


def test_what_is_no_map_is_told_from_one() -> None:
    maps = torch.full((1, 2, tiny_bert.LENGTH, tiny_bert.LENGTH), 1 / tiny_bert.LENGTH)
    assert tiny_bert._has_map((None, maps))
    for output in (None, (maps,), (maps, None), (None, 2 * maps), (None, maps[..., :2])):
        assert not tiny_bert._has_map(output)
