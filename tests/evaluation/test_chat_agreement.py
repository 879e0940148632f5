"""Held-out chats are measured on the answers' tokens alone, as plain PyTorch on whole logits measures them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lrc.evaluation.chat_agreement import measure_chats
from tests.tiny import tiny_teacher

CHATS = [([5, 6, 7, 8, 9], [-100, -100, 7, 8, -100]), ([9, 8, 7], [-100, 8, 7])]


def test_measures_are_those_of_whole_logits() -> None:
    student: Any = tiny_teacher("llama", hidden_size=16)
    teacher: Any = tiny_teacher("llama", seed=1)
    found = measure_chats(student, teacher, CHATS)
    log_p, log_t, targets = [], [], []
    for ids, labels in CHATS:
        rows = torch.tensor(labels[1:]) != -100
        log_p.append(student(input_ids=torch.tensor([ids])).logits[0, :-1][rows].log_softmax(-1))
        log_t.append(teacher(input_ids=torch.tensor([ids])).logits[0, :-1][rows].log_softmax(-1))
        targets.append(torch.tensor(labels[1:])[rows])
    one, other, target = torch.cat(log_p), torch.cat(log_t), torch.cat(targets)
    assert found["positions"] == 4
    assert found["cross_entropy"] == pytest.approx(float(F.nll_loss(one, target)), rel=1e-5)
    assert found["teacher_cross_entropy"] == pytest.approx(float(F.nll_loss(other, target)), rel=1e-5)
    assert found["kl"] == pytest.approx(float(F.kl_div(one, other, log_target=True, reduction="batchmean")), rel=1e-5)


def test_a_model_without_a_teacher_has_a_loss_alone_and_stays_in_its_mode() -> None:
    student: Any = tiny_teacher("llama", hidden_size=16)
    student.train()
    found = measure_chats(student, None, CHATS)
    assert found.keys() == {"cross_entropy", "positions"}
    assert found["cross_entropy"] == measure_chats(student, student, CHATS)["cross_entropy"]
    assert student.training
