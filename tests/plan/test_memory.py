"""Planned memory is what torch's profiler sees in a real training step; splitting it divides what it should."""

import dataclasses
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrc.clone.sites import Variant
from lrc.config import CHECKPOINTING, Checkpointing, ObjectiveConfig
from lrc.models.dense import Dense
from lrc.models.discovery import discover
from lrc.models.held_teacher import hold_teacher
from lrc.plan.memory import MemoryUse, StepMemory
from lrc.plan.sizes import Sizes, measure_sizes
from lrc.plan.strategies import ONE_DEVICE, STRATEGIES
from lrc.teacher_config import NATIVE, TeacherWeightsConfig
from tests.plan.published import llama_3_2_3b
from tests.plan.real_step import LENGTH, ROWS, STUDENT, allocated_peak, pair_of, real_pair, small_config

IO_TIED = Variant(attention_projections="io", ffn_projections="io", tie_embedding_projection=True)
CORRECTED, WHOLE = Variant(correction="outputs"), Variant(correction="mlp")
GB = 1e9


def step_memory(
    sizes: Sizes,
    *,
    masked: bool = False,
    accumulates: bool = False,
    teacher_weights: TeacherWeightsConfig = NATIVE,
) -> StepMemory:
    return StepMemory(
        sizes,
        ObjectiveConfig(),
        sequence=LENGTH,
        dtype=torch.float32,
        masked=masked,
        accumulates=accumulates,
        teacher_weights=teacher_weights,
    )


def beyond_weights(use: MemoryUse) -> float:
    """What a step adds to the weights and the optimiser's state."""
    return use.total - use.teacher - use.projections - use.optimizer


def planned_and_measured(
    family: str, variant: Variant, *, checkpointing: Checkpointing, masked: bool = False, micro_batches: int = 1
) -> tuple[float, int]:
    """What a step adds to weights and optimiser state at its highest point, bytes."""
    config = small_config(family, tie_word_embeddings=variant.tie_embedding_projection)
    architecture = discover(config)
    pair = real_pair(config, variant, ObjectiveConfig(), architecture)
    pair.set_activation_checkpointing(checkpointing)
    sizes = measure_sizes(config, architecture, variant, STUDENT)
    memory = step_memory(sizes, masked=masked, accumulates=micro_batches > 1)
    peak = memory.peak(ONE_DEVICE, devices=1, batch=ROWS, checkpointing=checkpointing)
    return beyond_weights(peak.use), allocated_peak(pair, masked=masked, micro_batches=micro_batches)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("masked", [False, True], ids=["whole-rows", "documents"])
@pytest.mark.parametrize("variant", [Variant(), IO_TIED, CORRECTED, WHOLE], ids=["all", "io", "outputs", "mlp"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_the_peak_is_the_one_that_the_profiler_sees(
    family: str, variant: Variant, masked: bool, checkpointing: Checkpointing
) -> None:
    planned, measured = planned_and_measured(family, variant, masked=masked, checkpointing=checkpointing)
    assert planned == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("variant", [Variant(), IO_TIED], ids=["all", "io-tied"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_several_micro_batches_share_merged_weights(
    family: str, variant: Variant, checkpointing: Checkpointing
) -> None:
    planned, measured = planned_and_measured(family, variant, checkpointing=checkpointing, micro_batches=3)
    assert planned == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize(
    "held", [{"format": "int8"}, {"format": "nf4"}, {"offload": "cpu"}], ids=["int8", "nf4", "cpu"]
)
def test_a_held_teacher_has_the_bytes_and_the_peak_of_its_plan(
    held: dict[str, Any], checkpointing: Checkpointing
) -> None:
    """On a CPU nothing is offloaded, so the plan for one has `offload=none`; the step is the same one."""
    settings = TeacherWeightsConfig(**held)
    config = small_config("qwen2", vocab_size=50, intermediate_size=1024)
    architecture = discover(config)
    teacher = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    store = hold_teacher(teacher, architecture, settings, torch.device("cpu"))
    pair = pair_of(teacher, Variant(), ObjectiveConfig(), architecture)
    pair.set_activation_checkpointing(checkpointing)
    memory = step_memory(
        measure_sizes(config, architecture, Variant(), STUDENT),
        teacher_weights=dataclasses.replace(settings, offload="none"),
    )
    own = sum(parameter.nbytes for parameter in teacher.parameters())
    assert memory.teacher_bytes == own + store.num_bytes
    peak = memory.peak(ONE_DEVICE, devices=1, batch=ROWS, checkpointing=checkpointing)
    assert beyond_weights(peak.use) == pytest.approx(allocated_peak(pair, words=50), rel=0.02)


def test_offloaded_layers_are_counted_twice_and_no_more() -> None:
    config = llama_3_2_3b()
    sizes = measure_sizes(config, discover(config), Variant(), 1536)
    layer, rest = 3072 * (2 * 3072 + 2 * 1024 + 3 * 8192), 128256 * 3072 + 57 * 3072
    rows = 3 * 3072 + 2 * 1024 + 2 * 8192  # an int8 row has a scale
    found = {
        (held.format, held.offload): StepMemory(
            sizes,
            ObjectiveConfig(),
            sequence=512,
            dtype=torch.bfloat16,
            masked=False,
            accumulates=True,
            teacher_weights=held,
        ).teacher_bytes
        for held in (
            NATIVE,
            TeacherWeightsConfig(format="int8"),
            TeacherWeightsConfig(format="nf4"),
            TeacherWeightsConfig(offload="cpu"),
            TeacherWeightsConfig(format="int8", offload="cpu"),
        )
    }
    assert found == {
        ("native", "none"): 2 * (28 * layer + rest),
        ("int8", "none"): 28 * (layer + 2 * rows) + 2 * rest,
        ("nf4", "none"): 28 * layer * 34 // 64 + 2 * rest,
        ("native", "cpu"): 2 * (2 * layer + rest),
        ("int8", "cpu"): 2 * (layer + 2 * rows) + 2 * rest,
    }


@pytest.mark.parametrize(("format", "matrix_bytes"), [("native", 2.0), ("int8", 1.0), ("nf4", 34 / 64)])
def test_packed_matrices_are_split_and_gathered_packed(format: Any, matrix_bytes: float) -> None:
    config = llama_3_2_3b()
    memory = StepMemory(
        measure_sizes(config, discover(config), Variant(), 1536),
        ObjectiveConfig(),
        sequence=512,
        dtype=torch.bfloat16,
        masked=False,
        accumulates=True,
        teacher_weights=TeacherWeightsConfig(format=format),
    )
    matrices = matrix_bytes * 3072 * (2 * 3072 + 2 * 1024 + 3 * 8192)
    scales = 2 * (3 * 3072 + 2 * 1024 + 2 * 8192) if format == "int8" else 0
    layer = matrices + scales + 2 * 2 * 3072  # and two norms
    words = 2 * 128256 * 3072
    trained = 4 * (7 * 3072 * 1536 + 2 * 1536)
    assert memory.unit_bytes == layer + trained
    assert memory.root_bytes == words + 2 * 3072 + 4 * (2 * 3072 * 1536 + 1536)  # nothing of it is packed
    for strategy in STRATEGIES:
        use = memory.peak(strategy, devices=8, batch=1, checkpointing="layer").use
        assert use.teacher == (28 * layer + words + 2 * 3072) / (8 if strategy.weights else 1)
        if strategy.name == "FSDP2":
            assert use.communication == 2 * memory.unit_bytes + memory.root_bytes + memory.unit_gradients


def test_a_peak_in_the_backward_pass_is_found_too() -> None:
    """Long rows, few words and wide layers: with checkpointing a layer done again outweighs the head."""
    config = small_config("llama", vocab_size=50, intermediate_size=1024)
    architecture = discover(config)
    pair = real_pair(config, Variant(), ObjectiveConfig(), architecture)
    pair.set_activation_checkpointing("layer")
    memory = step_memory(measure_sizes(config, architecture, Variant(), STUDENT))
    peak = memory.peak(ONE_DEVICE, devices=1, batch=ROWS, checkpointing="layer")
    assert peak.moment == "layers, backward"
    assert beyond_weights(peak.use) == pytest.approx(allocated_peak(pair, words=50), rel=0.05)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_a_larger_batch_is_extrapolated_from_one_and_two_rows(checkpointing: Checkpointing) -> None:
    config = small_config("qwen2")
    memory = step_memory(measure_sizes(config, discover(config), Variant(), STUDENT))
    traced, extrapolated = (
        memory.peak(ONE_DEVICE, devices=1, batch=7, checkpointing=checkpointing, exact=exact).use.total
        for exact in (True, False)
    )
    assert extrapolated == pytest.approx(traced, rel=0.01)


def test_with_accumulation_all_gradients_are_there_when_the_head_runs() -> None:
    config = small_config("llama")
    sizes = measure_sizes(config, discover(config), Variant(), STUDENT)
    sharded = next(strategy for strategy in STRATEGIES if strategy.name == "ZeRO-1")
    once, several = (
        step_memory(sizes, accumulates=accumulates).peak(sharded, devices=1, batch=ROWS, checkpointing="none")
        for accumulates in (False, True)
    )
    assert once.moment == several.moment == "head"
    assert once.use.gradients == 0
    assert several.use.gradients == 4 * sizes.trained_parameters
    # the head of a long step makes a gradient of its merged matrix
    of_head = several.use.working - once.use.working
    assert several.use.total - once.use.total == several.use.gradients + of_head


def test_the_largest_batch_fits_and_one_row_more_does_not() -> None:
    config = small_config("llama")
    memory = step_memory(measure_sizes(config, discover(config), Variant(), STUDENT))
    limit = 0.2 * GB
    batch = memory.largest_batch(ONE_DEVICE, devices=1, limit=limit, checkpointing="none")
    totals = [
        memory.peak(ONE_DEVICE, devices=1, batch=rows, checkpointing="none", exact=False).use.total
        for rows in (batch, batch + 1)
    ]
    assert batch > 1
    assert totals[0] <= limit < totals[1]
    assert memory.largest_batch(ONE_DEVICE, devices=1, limit=1, checkpointing="none") == 0


def test_a_strategy_divides_what_it_shards_and_nothing_else() -> None:
    config = llama_3_2_3b()
    sizes = measure_sizes(config, discover(config), Variant(tie_embedding_projection=True), 1536)
    memory = StepMemory(sizes, ObjectiveConfig(), sequence=512, dtype=torch.bfloat16, masked=False, accumulates=True)
    uses = {
        strategy.name: memory.peak(strategy, devices=8, batch=1, checkpointing="layer").use for strategy in STRATEGIES
    }
    trained, teacher = 4 * sizes.trained_parameters, 2 * sizes.teacher_parameters
    static = {
        name: (use.teacher / teacher, use.projections / trained, use.gradients / trained, use.optimizer / trained)
        for name, use in uses.items()
    }
    # under DDP micro-batches share the merged weights: their gradients, the writers', the embedding's and the gains'
    merged = 28 * 1536 * (2 * 3072 + 2 * 1024 + 3 * 8192) + 128256 * 1536
    direct = (2 * 28 + 1) * 3072 * 1536 + (2 * 28 + 1) * 1536
    assert uses["DDP"].merged == 2 * merged
    assert static == {
        "DDP": (1, 1, 4 * (merged + direct) / trained, 2),
        "ZeRO-1": (1, 1, 1, 1 / 4),
        "ZeRO-2": (1, 1, 1 / 8, 1 / 4),
        "ZeRO-3": (1 / 8, 1 / 8, 1 / 8, 1 / 4),
        "FSDP2": (1 / 8, 1 / 8, 1 / 8, 1 / 4),
    }
    assert uses["DDP"].communication == trained
    memory.merge = "step"
    once = memory.peak(STRATEGIES[-1], devices=8, batch=1, checkpointing="layer").use
    assert (once.merged, once.gradients) == (2 * merged, 4 * (merged + direct / 8))
    # two pair layers at a time, and the embedding (tied, so the head too) all the time
    layer = 2 * (3072 * (2 * 3072 + 2 * 1024 + 3 * 8192) + 2 * 3072) + 4 * (7 * 3072 * 1536 + 2 * 1536)
    root = 2 * (128256 * 3072 + 3072) + 4 * (3072 * 1536 + 1536)
    assert uses["FSDP2"].communication == 2 * layer + root + 4 * (7 * 3072 * 1536 + 2 * 1536)


@pytest.mark.parametrize(("variant", "matrices"), [(CORRECTED, 1), (WHOLE, 3)], ids=["outputs", "mlp"])
def test_corrections_are_weights_that_shards_split_and_layers_gather(variant: Variant, matrices: int) -> None:
    config = llama_3_2_3b()
    plain, corrected = (
        StepMemory(
            measure_sizes(config, discover(config), student, 1536),
            ObjectiveConfig(),
            sequence=512,
            dtype=torch.bfloat16,
            masked=False,
            accumulates=True,
        )
        for student in (Variant(), variant)
    )
    layer = matrices * 4 * 1536 * 8192
    uses = {
        strategy.name: [
            memory.peak(strategy, devices=8, batch=1, checkpointing="layer").use.projections
            for memory in (plain, corrected)
        ]
        for strategy in STRATEGIES
    }
    assert uses["DDP"][1] - uses["DDP"][0] == 28 * layer
    assert uses["FSDP2"][1] - uses["FSDP2"][0] == 28 * layer / 8
    assert corrected.unit_bytes - plain.unit_bytes == layer
    assert corrected.root_bytes == plain.root_bytes
    assert corrected.sizes.checkpoint_bytes("adamw") - plain.sizes.checkpoint_bytes("adamw") == 28 * layer
    assert corrected.sizes.trained_parameters == plain.sizes.trained_parameters


def dense_sizes(dense: Dense, variant: Variant = IO_TIED) -> Sizes:
    config = small_config("llama", tie_word_embeddings=variant.tie_embedding_projection)
    return measure_sizes(config, discover(config), variant, STUDENT, dense=dense)


@pytest.mark.parametrize("checkpointing", ["none", "layer"])
@pytest.mark.parametrize("variant", [Variant(), IO_TIED], ids=["all", "io-tied"])
@pytest.mark.parametrize("form", ["replace", "complement"])
@pytest.mark.parametrize("tensors", ["mlp", "all"])
def test_the_peak_of_a_dense_phase_is_the_one_that_the_profiler_sees(
    tensors: Any, form: Any, variant: Variant, checkpointing: Checkpointing
) -> None:
    dense = Dense(tensors=tensors, form=form)
    sizes = dense_sizes(dense, variant)
    pair = real_pair(sizes.config, variant, ObjectiveConfig(), sizes.architecture)
    pair.enter(dense)
    pair.set_activation_checkpointing(checkpointing)
    assert sizes.later is not None
    use = step_memory(sizes.later).peak(ONE_DEVICE, devices=1, batch=ROWS, checkpointing=checkpointing).use
    assert use.projections == 4 * sum(value.numel() for value in pair.stored().values())
    assert beyond_weights(use) == pytest.approx(allocated_peak(pair), rel=0.02)


def test_a_run_that_grows_needs_what_its_larger_phase_needs() -> None:
    sizes = dense_sizes(Dense(tensors="mlp"))
    assert sizes.later is not None
    grows, first, last = (
        step_memory(found, accumulates=True) for found in (sizes, dataclasses.replace(sizes, later=None), sizes.later)
    )
    ddp = STRATEGIES[0]
    peaks = [memory.peak(ddp, devices=8, batch=ROWS, checkpointing="none") for memory in (grows, first, last)]
    assert peaks[0] == peaks[2]
    added = sizes.later.trained_parameters - sizes.trained_parameters
    assert peaks[2].use.optimizer - peaks[1].use.optimizer == 8 * added
    limit = (peaks[1].use.total + peaks[2].use.total) / 2
    rows = [memory.largest_batch(ddp, devices=8, limit=limit, checkpointing="none") for memory in (first, grows)]
    assert rows[0] >= ROWS > rows[1]
