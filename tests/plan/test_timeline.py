"""The timeline adds up: what layers leave behind is there in the head, and gradients are all there at the end."""

import pytest

from lrc.clone.sites import Variant
from lrc.models.discovery import discover
from lrc.plan.sizes import Sizes, measure_sizes
from lrc.plan.step_trace import LayerStretches, StepTrace, Stretch
from lrc.plan.timeline import at_batch, lay_out, layer_bytes
from tests.models.tiny_configs import tiny_config


def tiny_sizes() -> Sizes:
    config = tiny_config("llama", num_hidden_layers=3)
    return measure_sizes(config, discover(config), Variant(), 16)


def trace_of(scale: int) -> StepTrace:
    return StepTrace(
        before=Stretch(peak=7 * scale, end=5 * scale),
        layers={
            0: LayerStretches(
                forward=Stretch(peak=300 * scale, end=100 * scale), backward=Stretch(peak=50 * scale, end=-60 * scale)
            )
        },
        head=Stretch(peak=1000 * scale, end=40 * scale),
        head_backward=Stretch(peak=20 * scale, end=-10 * scale),
        after=Stretch(peak=3 * scale, end=-2 * scale),
    )


def test_moments_follow_each_other_at_full_depth() -> None:
    moments = lay_out(
        tiny_sizes(), trace_of(1), [0, 0, 0], layer_bytes(tiny_sizes(), itemsize=4, checkpointing="layer")
    )
    assert [moment.name for moment in moments] == [
        "embedding",
        *["layers, forward"] * 3,
        "head",
        "head, backward",
        *["layers, backward"] * 3,
        "embedding, backward",
    ]
    starts = [moment.kept + moment.gradients for moment in moments]
    assert starts == [0, 5, 105, 205, 305, 345, 335, 275, 215, 155]
    assert moments[4].total == 1305


def test_gradients_and_merged_weights_are_those_of_the_layers() -> None:
    sizes = tiny_sizes()
    found = layer_bytes(sizes, itemsize=2, checkpointing="none")
    # q, k, v, o, gate, up, down and two gains; 4 + 2 + 2 heads of 6, FFN 56
    assert found.gradients == [4 * (7 * 32 * 16 + 2 * 16)] * 3
    assert found.merged == [2 * 16 * (24 + 12 + 12 + 24 + 3 * 56)] * 3
    moments = lay_out(sizes, trace_of(1), [0, 0, 0], found)
    assert moments[4].merged == sum(found.merged)
    assert moments[-1].merged == 0
    # all but the embedding's own projection
    assert moments[-1].gradients == 4 * (sizes.trained_parameters - 32 * 16)
    assert layer_bytes(sizes, itemsize=2, checkpointing="layer").merged == [0, 0, 0]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_is_extrapolated_from_one_and_two_rows(batch: int) -> None:
    assert at_batch(trace_of(1), trace_of(2), batch) == trace_of(batch)
