"""The probe sequences and the measures between two models' log-probabilities on them."""

import math
from pathlib import Path

import pytest
import torch

from lrc.export.probe import (
    compare,
    differences,
    joined,
    log_probabilities,
    probe_sequences,
    probe_windows,
    scored_every,
)
from lrc.models.teacher import load_tokenizer
from tests.export.bpe_student import bpe_student
from tests.tiny import tiny_teacher


def test_sequences_are_texts_and_random_ids_and_never_change(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bpe_student(tmp_path))
    sequences = probe_sequences(tokenizer, len(tokenizer))
    assert [len(ids) for ids in sequences] == [64] * 4
    assert tokenizer.decode(sequences[0]).startswith("The river rises")
    assert sequences == probe_sequences(tokenizer, len(tokenizer))
    assert len(probe_sequences(None, 48)) == 1
    assert max(probe_sequences(None, 48)[0]) < 48


def test_the_long_probe_is_512_positions_of_windows_that_never_repeat(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bpe_student(tmp_path))
    windows = probe_windows(tokenizer, len(tokenizer))
    assert [len(ids) for ids in windows] == [64] * 8
    assert len({tuple(ids) for ids in windows}) == 8
    assert windows == probe_windows(tokenizer, len(tokenizer))
    assert [tokenizer.decode(ids)[:9] for ids in windows[3:6]] == ['"You are ', "A star sh", "Dear Mr H"]
    assert max(max(ids) for ids in probe_windows(None, 48)) < 48


@pytest.mark.parametrize(("vocab_size", "every"), [(48, 1), (65_536, 1), (128_256, 2), (151_936, 3), (262_144, 4)])
def test_the_larger_the_vocabulary_the_fewer_positions_are_scored(vocab_size: int, every: int) -> None:
    assert scored_every(vocab_size) == every


@pytest.mark.parametrize(("every", "scored"), [(1, [0, 1, 2]), (2, [0, 2])])
def test_scored_positions_are_normalised(every: int, scored: list[int]) -> None:
    model = tiny_teacher("llama")
    rows = log_probabilities(model, [[5, 6, 7], [8, 9]], every=every)
    count = len(scored) + (2 if every == 1 else 1)
    assert rows.shape == (count, 48)
    torch.testing.assert_close(rows.exp().sum(-1), torch.ones(count, dtype=torch.float64))
    expected = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, scored].double().log_softmax(-1)
    torch.testing.assert_close(rows[: len(scored)], expected)


def test_measures_by_hand() -> None:
    expected = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], dtype=torch.float64).log()
    found = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], dtype=torch.float64).log()
    measured = compare(found, expected)
    assert measured["positions"] == 2
    assert measured["top1_agreement"] == 0.5
    assert measured["max_abs_difference"] == pytest.approx(math.log(2))
    assert measured["kl"] == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 2)


def test_measures_of_parts_are_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    found, expected = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    whole = compare(found, expected)
    parts = joined([differences(found[:2], expected[:2]), differences(found[2:], expected[2:])])
    assert parts.summary() == pytest.approx(whole)
    chosen = torch.tensor([True, False, True, True, False, False])
    assert parts.at(chosen).summary() == pytest.approx(compare(found[chosen], expected[chosen]))
