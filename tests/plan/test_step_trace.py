"""A few layers stand for all: kinds of layers are told apart, and a short trace laid out is the whole step's."""

import pytest
import torch

from lrc.clone.sites import Variant
from lrc.config import ObjectiveConfig
from lrc.models.discovery import discover
from lrc.plan.memory import StepMemory
from lrc.plan.sizes import Sizes, measure_sizes
from lrc.plan.step_trace import layer_kinds, trace_step
from lrc.plan.strategies import ONE_DEVICE
from tests.models.tiny_configs import tiny_config
from tests.plan.real_step import STUDENT, allocated_peak, real_pair, small_config


def sizes_of(family: str, **changes: object) -> Sizes:
    config = tiny_config(family, **changes)
    return measure_sizes(config, discover(config), Variant(), 16)


def test_layers_of_one_kind_are_told_from_others() -> None:
    assert layer_kinds(sizes_of("llama", num_hidden_layers=5)) == [0] * 5
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    assert layer_kinds(sizes_of("gemma3_text", num_hidden_layers=4, layer_types=kinds)) == [0, 0, 1, 0]


def test_a_trace_holds_every_kind_of_layer_whatever_the_depth() -> None:
    kinds = ["sliding_attention", "full_attention", *["sliding_attention"] * 30]
    sizes = sizes_of("gemma3_text", num_hidden_layers=32, layer_types=kinds, sliding_window=4, num_key_value_heads=4)
    trace = trace_step(
        sizes,
        layer_kinds(sizes),
        ObjectiveConfig(),
        batch=2,
        sequence=16,
        dtype=torch.bfloat16,
        checkpointing="none",
        masked=False,
    )
    assert set(trace.layers) == {0, 1}
    # a window shorter than the row needs a mask, which attention keeps in the compute dtype; causality needs none
    assert trace.layers[0].forward.end - trace.layers[1].forward.end == pytest.approx(2 * 16 * 16 * 2, abs=600)


def test_layers_that_were_not_traced_are_laid_out_as_the_profiler_sees_them() -> None:
    config = small_config("gemma3_text", num_hidden_layers=9, sliding_window=32)
    architecture = discover(config)
    pair = real_pair(config, Variant(), ObjectiveConfig(), architecture)
    sizes = measure_sizes(config, architecture, Variant(), STUDENT)
    memory = StepMemory(sizes, ObjectiveConfig(), sequence=96, dtype=torch.float32, masked=False, accumulates=False)
    use = memory.peak(ONE_DEVICE, devices=1, batch=2, checkpointing="none").use
    planned = use.gradients + use.merged + use.activations + use.working
    assert planned == pytest.approx(allocated_peak(pair), rel=0.02)
