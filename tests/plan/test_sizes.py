"""Sizes count what training moves and what export writes, exactly, and what was published."""

from typing import Any, Literal

import pytest

from lrc.clone.sites import Variant
from lrc.config import ObjectiveConfig
from lrc.method_config import DenseForm
from lrc.models.dense import Dense
from lrc.models.discovery import discover
from lrc.models.moments import checkpoint_bytes
from lrc.plan.sizes import Sizes, measure_sizes
from tests.models.tiny_configs import tiny_config
from tests.plan.published import Published, published_runs
from tests.plan.real_step import STUDENT, real_pair, small_config

RUNS = published_runs()


def hand_count(run: Published) -> tuple[int, int]:
    """Count student and trained parameters from the config's fields, as METHOD's section on the definition has them."""
    config, d = run.config, run.d_student
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    bias = queries + 2 * keys if config.model_type == "qwen2" else 0
    layer = d * (2 * queries + 2 * keys + 3 * config.intermediate_size) + 2 * d + bias
    heads = 1 if config.tie_word_embeddings else 2
    student = config.num_hidden_layers * layer + heads * config.vocab_size * d + d
    # q, k, v, o, gate, up, down and two gains a layer; embedding and head share a projection where they are tied
    projections = 7 * config.num_hidden_layers + heads
    trained = projections * config.hidden_size * d + (2 * config.num_hidden_layers + 1) * d
    return student, trained


@pytest.mark.parametrize("run", RUNS, ids=[run.recipe for run in RUNS])
def test_published_students_have_the_published_and_the_hand_counted_parameters(run: Published) -> None:
    sizes = measure_sizes(run.config, discover(run.config), run.variant, run.d_student)
    assert (sizes.student_parameters, sizes.trained_parameters) == hand_count(run)
    if run.student is not None and run.trained is not None:
        assert round(sizes.student_parameters / 1e9, 2) == run.student
        assert round(sizes.trained_parameters / 1e9, 2) == run.trained


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize(
    "variant",
    [
        Variant(),
        Variant(tie_embedding_projection=True),
        Variant(attention_projections="io", ffn_projections="io", tie_embedding_projection=True),
    ],
    ids=["all", "tied", "io-tied"],
)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_counts_are_those_of_the_pair_and_of_the_stock_student(family: str, variant: Variant, tied_head: bool) -> None:
    config: Any = small_config(family, tie_word_embeddings=tied_head)
    architecture = discover(config)
    sizes: Sizes = measure_sizes(config, architecture, variant, STUDENT)
    pair = real_pair(config, variant, ObjectiveConfig(), architecture)
    assert sizes.trained_parameters == sum(parameter.numel() for parameter in pair.trained().values())
    parts = [part for part in pair.parts() if part is not pair.head or not pair.student_config.tie_word_embeddings]
    merged = [part.student_tensors()[name] for part in parts for name, _ in part.twin.named_parameters()]
    assert sizes.student_parameters == sum(tensor.numel() for tensor in merged)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_are_those_that_the_optimiser_keeps(optimizer: Literal["adamw", "muon"]) -> None:
    config = tiny_config("llama")
    sizes = measure_sizes(config, discover(config), Variant(), 16)
    projections, gains = 16 * 32 * 16, 5 * 16  # 7 in each of 2 layers, embedding and head; 2 gains a layer and the last
    moments = {"adamw": 8 * (projections + gains), "muon": 4 * projections + 4 * 16 * 32 + 8 * gains}[optimizer]
    assert sizes.moment_bytes(optimizer) == moments
    assert sizes.checkpoint_bytes(optimizer) == 4 * (projections + gains) + moments


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("form", ["replace", "complement"])
@pytest.mark.parametrize("tensors", ["mlp", "all"])
@pytest.mark.parametrize("variant", [Variant(), Variant(tie_embedding_projection=True)], ids=["untied", "tied"])
def test_a_dense_phase_has_the_shapes_that_the_pair_trains_and_training_s_room_for_checkpoints(
    variant: Variant, tensors: Literal["mlp", "all"], form: DenseForm, optimizer: Literal["adamw", "muon"]
) -> None:
    dense = Dense(tensors=tensors, form=form)
    config = small_config("llama", tie_word_embeddings=variant.tie_embedding_projection)
    sizes = measure_sizes(config, discover(config), variant, STUDENT, dense=dense)
    pair = real_pair(config, variant, ObjectiveConfig(), sizes.architecture)
    phases = [pair.trained_shapes(None), pair.trained_shapes(dense)]
    assert sizes.later is not None
    assert [sizes.trained_shapes, sizes.later.trained_shapes] == phases
    most = max(checkpoint_bytes(shapes, optimizer, pair.tables()) for shapes in phases)
    assert sizes.checkpoint_bytes(optimizer) == most
    pair.enter(dense)
    assert sizes.later.trained_parameters == sum(parameter.numel() for parameter in pair.trained().values())
