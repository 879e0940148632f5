"""A tiny config keeps everything odd and is small whatever the teacher is."""

import torch
from transformers import Gemma2Config

from lrc.models.tiny import random_model, tiny_config
from tests.models.family_configs import FAMILY_CONFIGS


def test_a_big_teacher_becomes_small_and_stays_odd() -> None:
    config = Gemma2Config(hidden_size=4608, num_attention_heads=32, num_key_value_heads=16, num_hidden_layers=46)
    before = config.to_dict()
    tiny = tiny_config(config)
    assert config.to_dict() == before
    assert (tiny.hidden_size, tiny.num_hidden_layers, tiny.vocab_size, tiny.intermediate_size) == (64, 8, 64, 64)
    assert tiny.layer_types == config.layer_types[:8]
    assert (tiny.head_dim, tiny.final_logit_softcapping) == (config.head_dim, config.final_logit_softcapping)
    assert tiny.eos_token_id < 64


def test_a_random_model_is_the_same_every_time_and_leaves_the_random_state() -> None:
    config = FAMILY_CONFIGS["deepseek_v3"]()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (random_model(config).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert bool(first["model.layers.1.mlp.gate.e_score_correction_bias"].any())
