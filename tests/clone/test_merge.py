"""Merging contracts the hidden axis and nothing else, and agrees with lifting and projecting activations."""

import string

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrc.clone.merge import lift, merge, project

D_TEACHER, D_STUDENT = 6, 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("shape", "axis", "formula"),
    [
        pytest.param((5, D_TEACHER), 1, "od,ds->os", id="reader: W P"),
        pytest.param((D_TEACHER, 5), 0, "di,ds->si", id="writer: P.T W"),
        pytest.param((D_TEACHER,), 0, "d,ds->s", id="writer's bias: P.T b"),
        pytest.param((3, 5, D_TEACHER), 2, "eod,ds->eos", id="experts that read"),
        pytest.param((3, D_TEACHER, 5), 1, "edi,ds->esi", id="experts that write"),
        pytest.param((D_TEACHER, 3, 5), 0, "dab,ds->sab", id="hidden axis in front"),
        pytest.param((D_TEACHER, D_TEACHER), 0, "di,ds->si", id="square writer"),
        pytest.param((D_TEACHER, D_TEACHER), 1, "od,ds->os", id="square reader"),
    ],
)
def test_merge_is_the_plain_contraction(shape: tuple[int, ...], axis: int, formula: str) -> None:
    weight, projection = random(*shape), random(D_TEACHER, D_STUDENT, seed=1)
    torch.testing.assert_close(
        merge(weight, projection, axis), torch.einsum(formula, weight, projection), rtol=0, atol=1e-12
    )


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
@settings(deadline=None, max_examples=40)
def test_merge_replaces_one_axis_of_any_tensor(sizes: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(sizes) - 1))
    d_student = data.draw(st.integers(1, 4))
    weight, projection = random(*sizes), random(sizes[axis], d_student, seed=1)
    letters = string.ascii_lowercase[: len(sizes)]
    merged = merge(weight, projection, axis)
    expected = torch.einsum(f"{letters},{letters[axis]}z->{letters.replace(letters[axis], 'z')}", weight, projection)
    assert merged.shape == expected.shape
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-12)


def test_a_merged_reader_reads_what_the_teacher_reads_from_the_lifted_stream() -> None:
    weight, projection, stream = random(5, D_TEACHER), random(D_TEACHER, D_STUDENT, seed=1), random(2, 3, 4, seed=2)
    torch.testing.assert_close(
        stream @ merge(weight, projection, 1).T, lift(stream, projection) @ weight.T, rtol=0, atol=1e-12
    )


def test_a_merged_writer_writes_the_projected_output_of_the_teacher() -> None:
    weight, bias = random(D_TEACHER, 5), random(D_TEACHER, seed=3)
    projection, inner = random(D_TEACHER, D_STUDENT, seed=1), random(2, 3, 5, seed=2)
    torch.testing.assert_close(
        inner @ merge(weight, projection, 0).T + merge(bias, projection, 0),
        project(inner @ weight.T + bias, projection),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_the_identity_projection_leaves_the_teacher(axis: int) -> None:
    weight = random(D_TEACHER, D_TEACHER)
    assert torch.equal(merge(weight, torch.eye(D_TEACHER, dtype=torch.float64), axis), weight)


@pytest.mark.parametrize(("shape", "axis"), [((5, D_TEACHER), 1), ((D_TEACHER, 5), 0), ((3, D_TEACHER, 5), 1)])
def test_the_gradient_reaches_the_projection(shape: tuple[int, ...], axis: int) -> None:
    weight = random(*shape)
    projection = random(D_TEACHER, D_STUDENT, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: merge(weight, p, axis), (projection,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merge_keeps_the_dtype(dtype: torch.dtype) -> None:
    merged = merge(random(5, D_TEACHER).to(dtype), random(D_TEACHER, D_STUDENT).to(dtype), 1)
    assert merged.dtype == dtype
