"""A real training step of a small pair on the CPU, with torch's own instruments around it: what plans are held against.

The profiler reports every allocation and release of the CPU allocator, and `FlopCounterMode` every product; neither
knows anything of `lrc.plan`.
"""

import gc
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop
from transformers import AutoModelForCausalLM

from lrc.clone import head
from lrc.clone.sites import Variant
from lrc.config import ObjectiveConfig
from lrc.models.discovery import Architecture
from lrc.models.pair_model import PairModel, StepCounts
from lrc.models.step_weights import step_weights_for
from tests.models.tiny_configs import FAMILIES

SMALL = {
    "vocab_size": 1000,
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STUDENT = 96
ROWS, LENGTH = 2, 96


def small_config(family: str, **changes: Any) -> Any:
    """Make a family's config, wide enough that products and activations outweigh bookkeeping."""
    return FAMILIES[family](**(SMALL | changes))


def real_pair(config: Any, variant: Variant, objective: ObjectiveConfig, architecture: Architecture) -> PairModel:
    """Build the pair with random weights, ready to train."""
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    return pair_of(teacher, variant, objective, architecture)


def pair_of(teacher: Any, variant: Variant, objective: ObjectiveConfig, architecture: Architecture) -> PairModel:
    """Build the pair of a teacher with random projections."""
    pair = PairModel(
        teacher, hidden_size=STUDENT, variant=variant, objective=objective, architecture=architecture
    ).train()
    with torch.no_grad():
        for parameter in pair.trained().values():
            parameter.normal_(0, 0.05)
    return pair


def take_step(pair: PairModel, *, masked: bool = False, words: int = 1000) -> None:
    """Run one micro-batch forward and backward; `masked`: two documents a row."""
    ids = torch.randint(3, words, (ROWS, LENGTH))
    valid = torch.ones_like(ids, dtype=torch.bool)
    counts = StepCounts(labels=ids.numel(), positions=ids.numel(), sequences=ROWS)
    half = torch.arange(LENGTH // 2)
    positions = torch.cat((half, half))[None].expand(ROWS, -1).contiguous() if masked else None
    pair(ids, ids, valid, counts, positions).objective.backward()


def counted_flops(pair: PairModel) -> int:
    """Count the products of one step with torch's counter, told of two operations that it does not know."""
    aten = torch.ops.aten

    def forward(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_backward_flop(grad, query, key, value)

    def product_into(into: Any, left: Any, right: Any, *args: Any, **kwargs: Any) -> int:
        return 2 * left[0] * left[1] * right[1]  # the counter knows addmm but not the one in place

    mapping = {
        aten.addmm_: product_into,
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        take_step(pair)
    return int(counter.get_total_flops())


def allocated_peak(pair: PairModel, *, masked: bool = False, words: int = 1000, micro_batches: int = 1) -> int:
    """Measure the most bytes that a step of so many micro-batches adds, by the events of the CPU allocator.

    The head takes a GPU's way, as in a plan; a CPU reduces its logits in place and needs less.
    """
    gc.collect()  # an earlier pair that dies meanwhile would count below zero
    as_planned = patch.object(head, "stays_in_cache", lambda products: False)
    with as_planned, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        if micro_batches == 1:
            take_step(pair, masked=masked, words=words)
        else:
            weights = step_weights_for(pair, "step", accumulation=micro_batches)
            assert weights is not None
            for _ in range(micro_batches):
                weights.form()
                take_step(pair, masked=masked, words=words)
            weights.pull_back()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted(
        ((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"),
        key=lambda change: change[0],
    )
    now = peak = 0
    for _, size in changes:
        now += size
        peak = max(peak, now)
    return peak
