"""Agreement against plain formulas in float64."""

import pytest
import torch
from torch import Tensor

from lrc.evaluation import agreement as agreement_module
from lrc.evaluation.agreement import Agreement, measure_pair
from tests.models.test_pair import batch, fill_random, make_pair
from tests.tiny import tiny_teacher


def test_sums_equal_the_plain_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(20, 30, generator=generator, dtype=torch.float64)
    teacher = student + 0.7 * torch.randn(20, 30, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 30, (20,), generator=generator)
    labels[[3, 9]] = -100
    agreement = Agreement()
    agreement.add(student[:11], teacher[:11], labels[:11])
    agreement.add(student[11:], teacher[11:], labels[11:])
    keep = labels != -100
    p, q = student[keep].softmax(-1), teacher[keep].softmax(-1)
    rows = torch.arange(int(keep.sum()))
    order = p.argsort(-1, descending=True)
    assert agreement.positions == 18
    assert agreement.kl == pytest.approx(float((q * (q / p).log()).sum(-1).mean()), rel=1e-5)
    assert agreement.cross_entropy == pytest.approx(float(-p[rows, labels[keep]].log().mean()), rel=1e-5)
    assert agreement.teacher_cross_entropy == pytest.approx(float(-q[rows, labels[keep]].log().mean()), rel=1e-5)
    best = q.argmax(-1)
    assert agreement.top1_agreement == pytest.approx(float((order[:, 0] == best).double().mean()))
    assert agreement.top5_agreement == pytest.approx(float((order[:, :5] == best[:, None]).any(-1).double().mean()))


def test_the_same_logits_agree_fully() -> None:
    logits = torch.randn(5, 9)
    agreement = Agreement()
    agreement.add(logits, logits, torch.tensor([1, 2, 3, -100, 0]))
    assert agreement.kl == pytest.approx(0, abs=1e-7)
    assert agreement.top1_agreement == agreement.top5_agreement == 1


def test_nothing_labelled_gives_zeros() -> None:
    agreement = Agreement()
    agreement.add(torch.randn(3, 4), torch.randn(3, 4), torch.full((3,), -100))
    assert agreement.positions == 0
    assert agreement.kl == 0


def test_a_pair_is_measured_as_its_logits_are() -> None:
    teacher = tiny_teacher("gemma3_text", final_logit_softcapping=3.0)
    pair = make_pair(teacher, 16)
    fill_random(pair)
    ids, labels, _ = batch()
    measured = measure_pair(pair, [(ids, labels)])
    with torch.no_grad():
        student, _, _ = pair.hidden_states(ids, None)
        logits = 3 * torch.tanh(student @ pair.heads()[0].T / 3)
        plain = Agreement()
        plain.add(logits.flatten(0, 1), teacher(ids).logits.flatten(0, 1), labels.flatten())
    assert measured.kl == pytest.approx(plain.kl, rel=1e-4)
    assert measured.teacher_cross_entropy == pytest.approx(plain.teacher_cross_entropy, rel=1e-5)
    assert measured.top1_agreement == plain.top1_agreement


def test_windows_of_any_lengths_are_measured_as_they_are_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(tiny_teacher("llama"), 16)
    fill_random(pair)
    lengths = (5, 5, 5, 7, 5, 30)
    windows = [(torch.randint(3, 40, (1, length)), torch.randint(3, 40, (1, length))) for length in lengths]
    windows[1][1][:, 2:] = -100
    one_by_one = [measure_pair(pair, [window]) for window in windows]
    batches: list[int] = []
    run = pair.hidden_states

    def counted(ids: Tensor, valid: None) -> object:
        batches.append(ids.shape[0])
        return run(ids, valid)

    monkeypatch.setattr(pair, "hidden_states", counted)
    monkeypatch.setattr(agreement_module, "JOINED_POSITIONS", 12)
    joined = measure_pair(pair, windows)
    assert batches == [2, 1, 1, 1, 1]
    assert joined.positions == sum(single.positions for single in one_by_one) == sum(lengths) - 3
    assert joined.kl_sum == pytest.approx(sum(single.kl_sum for single in one_by_one), rel=1e-5)
    assert joined.top5_hits == sum(single.top5_hits for single in one_by_one)
