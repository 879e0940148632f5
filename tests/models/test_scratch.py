"""A student from scratch: the stock class's own values, no teacher in its forward where the method has none."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lrc.config import CHECKPOINTING, Checkpointing
from lrc.errors import ConfigError
from lrc.method_config import Method, ObjectiveConfig, method_objective
from lrc.models.dense import FROM_SCRATCH
from lrc.models.discovery import discover
from lrc.models.pair_model import PairModel
from lrc.models.scratch import check_scratch, fill_scratch
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.test_pair import VARIANTS, batch, counts_of
from tests.models.tiny_configs import FAMILIES
from tests.tiny import tiny_teacher


def scratch_pair(
    teacher: nn.Module, method: Method = "only_kd", variant: Any = VARIANTS[0], **objective: Any
) -> PairModel:
    pair = PairModel(
        teacher,
        hidden_size=16,
        variant=variant,
        objective=method_objective(method, ObjectiveConfig(**objective)),
        method=method,
    ).train()
    pair.enter(FROM_SCRATCH)
    fill_scratch(pair, seed=3)
    return pair


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[2]], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_stock_model_of_the_same_seed(family: str, variant: Any) -> None:
    teacher = tiny_teacher(family, tie_word_embeddings=True)
    pair = scratch_pair(teacher, variant=variant)
    state = torch.random.get_rng_state()
    torch.manual_seed(3)
    stock = AutoModelForCausalLM.from_config(pair.student_config).eval()
    torch.random.set_rng_state(state)
    assert {name.partition(".")[2] for name in pair.trained()} == {name for name, _ in stock.named_parameters()}
    ids = batch()[0]
    with torch.no_grad():
        torch.testing.assert_close(pair.logits(ids)[0], stock(input_ids=ids, use_cache=False).logits)


def test_filling_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    scratch_pair(tiny_teacher("llama", seed=1))
    torch.manual_seed(1)
    assert before is not None
    teacher = tiny_teacher("llama")
    state = torch.random.get_rng_state()
    scratch_pair(teacher)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_origin_runs_no_teacher_in_training_and_measures_against_it(checkpointing: Checkpointing) -> None:
    teacher = tiny_teacher("qwen3")
    pair = scratch_pair(teacher, "origin")
    pair.set_activation_checkpointing(checkpointing)
    calls: list[str] = []
    for name, module in teacher.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    ids, labels, valid = batch()
    losses = pair(ids, labels, valid, counts_of(labels, valid))
    losses.objective.backward()
    assert calls == []
    assert float(losses.kl) == 0
    kept = labels != -100
    with torch.no_grad():
        logits, theirs = pair.logits(ids)
        expected = nn.functional.cross_entropy(logits[kept], labels[kept])
        torch.testing.assert_close(losses.objective.detach(), expected)
        torch.testing.assert_close(theirs, teacher(input_ids=ids, use_cache=False).logits)  # type: ignore[operator]
    assert calls
    assert all(value.grad is not None for value in pair.trained().values())


def test_only_kd_is_the_objective_s_lm_and_kl() -> None:
    teacher: Any = tiny_teacher("llama")
    pair = scratch_pair(teacher, lm_weight=0.3, kl_weight=0.7, temperature=2.0, clone_weight=9.0)
    ids, labels, valid = batch()
    losses = pair(ids, labels, valid, counts_of(labels, valid))
    assert losses.clone.numel() == 0
    kept = labels != -100
    logits, theirs = (made.detach()[kept] for made in pair.logits(ids))
    lm = nn.functional.cross_entropy(logits, labels[kept])
    p, q = logits.div(2).log_softmax(-1), theirs.div(2).log_softmax(-1)
    kl: Tensor = (q.exp() * (q - p)).sum(-1).mean()
    torch.testing.assert_close(losses.objective.detach(), 0.3 * lm + 0.7 * 4 * kl)


def test_a_class_with_stored_buffers_is_refused() -> None:
    config = FAMILY_CONFIGS["deepseek_v3"]()
    with pytest.raises(ConfigError, match=r"can't be trained from scratch: .*e_score_correction_bias"):
        check_scratch(config, discover(config), config.hidden_size // 2, tied=False)
    config = FAMILY_CONFIGS["qwen3_moe"]()
    check_scratch(config, discover(config), config.hidden_size // 2, tied=False)
