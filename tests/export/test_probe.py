"""The probe sequences and the measures between two models' log-probabilities on them."""

import math
from pathlib import Path

import pytest
import torch

from lrc.export.probe import NUM_RANDOM_TOKENS, SEQUENCE_TOKENS, compare, log_probabilities, probe_sequences
from lrc.models.teacher import load_tokenizer
from tests.export.bpe_student import bpe_student
from tests.tiny import tiny_teacher


def test_sequences_are_texts_and_random_ids_and_never_change(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bpe_student(tmp_path))
    sequences = probe_sequences(tokenizer, len(tokenizer))
    assert [len(ids) for ids in sequences] == [SEQUENCE_TOKENS] * 3 + [NUM_RANDOM_TOKENS]
    assert tokenizer.decode(sequences[0]).startswith("The river rises")
    assert sequences == probe_sequences(tokenizer, len(tokenizer))
    assert len(probe_sequences(None, 48)) == 1
    assert max(probe_sequences(None, 48)[0]) < 48


def test_every_second_position_is_scored_and_normalised() -> None:
    model = tiny_teacher("llama")
    rows = log_probabilities(model, [[5, 6, 7], [8, 9]])
    assert rows.shape == (3, 48)
    torch.testing.assert_close(rows.exp().sum(-1), torch.ones(3, dtype=torch.float64))
    expected = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, 2].double().log_softmax(-1)
    torch.testing.assert_close(rows[1], expected)


def test_measures_by_hand() -> None:
    expected = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], dtype=torch.float64).log()
    found = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], dtype=torch.float64).log()
    measured = compare(found, expected)
    assert measured["positions"] == 2
    assert measured["top1_agreement"] == 0.5
    assert measured["max_abs_difference"] == pytest.approx(math.log(2))
    assert measured["kl"] == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 2)
