"""Agreement against plain formulas in float64."""

import pytest
import torch

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
