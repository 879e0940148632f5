"""The loss with the teacher: LM and KL of the answers' tokens alone, against plain PyTorch on whole logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from lrc.sft.fine_tune import trainer_settings
from lrc.sft.teacher_kl import TeacherSFTTrainer
from lrc.sft_config import SftConfig
from tests.sft.tiny_chats import VOCABULARY, chat_tokenizer
from tests.tiny import tiny_teacher

SIZES = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
ROWS = [(9, 4), (5, 3), (12, 7), (3, 1), (6, 2)]
"""Length of each row and where its answer begins."""
WEIGHT = 0.7


def rows() -> Dataset:
    generator = torch.Generator().manual_seed(3)
    made: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for length, begin in ROWS:
        ids = torch.randint(0, 250, (length,), generator=generator).tolist()
        made["input_ids"].append(ids)
        made["labels"].append([-100] * begin + ids[begin:])
    return Dataset.from_dict(made)


def trainer_of(folder: Path, *, packing: bool = False, family: str = "llama") -> TeacherSFTTrainer:
    settings = SftConfig(batch_size=len(ROWS), packing=packing, sequence_length=32, teacher_kl=WEIGHT)
    student: Any = tiny_teacher(family, hidden_size=24, **SIZES).requires_grad_(True)
    return TeacherSFTTrainer(
        teacher=tiny_teacher(family, seed=1, **SIZES),
        teacher_kl=WEIGHT,
        model=student,
        args=trainer_settings(settings, folder, device=torch.device("cpu"), dtype=torch.float32),
        train_dataset=rows(),
        processing_class=chat_tokenizer(),
    )


LEARNT = sum(length - begin for length, begin in ROWS)


def loss_of(trainer: TeacherSFTTrainer) -> Tensor:
    """The loss of all rows as one step."""
    trainer.model.train()
    total = torch.zeros(())
    for batch in trainer.get_train_dataloader():
        total = total + trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=LEARNT)
    return total


def reference(student: Any, teacher: Any, weight: float = WEIGHT) -> Tensor:
    """The same, a row at a time on whole logits."""
    total, count = torch.zeros(()), 0
    for row in rows():
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        log_p = student(input_ids=ids).logits[0, :-1].log_softmax(-1)
        log_t = teacher(input_ids=ids).logits[0, :-1].log_softmax(-1)
        learnt = labels[1:] != -100
        lm = F.nll_loss(log_p[learnt], labels[1:][learnt], reduction="sum")
        kl = F.kl_div(log_p[learnt], log_t[learnt], log_target=True, reduction="sum")
        total, count = total + lm + weight * kl, count + int(learnt.sum())
    return total / count


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("packing", [False, True])
def test_loss_and_gradient_are_those_of_whole_logits_and_packed_rows_do_not_see_each_other(
    tmp_path: Path, family: str, packing: bool
) -> None:
    trainer = trainer_of(tmp_path, packing=packing, family=family)
    if packing:
        assert len(trainer.train_dataset) == 2  # 35 tokens in rows of at most 32
    student = tiny_teacher(family, hidden_size=24, **SIZES).requires_grad_(True)
    loss, expected = loss_of(trainer), reference(student, tiny_teacher(family, seed=1, **SIZES))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    expected.backward()
    for (name, ours), theirs in zip(trainer.model.named_parameters(), student.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text
        )


def test_micro_batches_add_up_to_the_step(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    whole = loss_of(trainer)
    trainer.args.per_device_train_batch_size = 2
    trainer._train_batch_size = 2
    torch.testing.assert_close(loss_of(trainer), whole, rtol=1e-5, atol=0)


def test_without_a_count_the_batch_is_its_own_step(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    (batch,) = trainer.get_train_dataloader()
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), loss_of(trainer), rtol=1e-5, atol=0)


def test_a_student_that_is_its_teacher_has_no_kl(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer._teacher = trainer._student
    plain = reference(trainer.model, trainer.model, weight=0.0)
    torch.testing.assert_close(loss_of(trainer), plain, rtol=1e-5, atol=0)


def test_the_log_tells_the_mean_kl_since_the_line_before(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    student, teacher = trainer.model, trainer._teacher.model
    with torch.no_grad():
        kl = reference(student, teacher, weight=1.0) - reference(student, teacher, weight=0.0)
    loss_of(trainer)
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs["kl_loss"] == pytest.approx(float(kl), rel=1e-5)
    trainer.log(again := {"loss": 1.0})
    assert again["kl_loss"] == 0.0


def test_a_batch_without_an_answer_gives_zero_and_a_gradient(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    (batch,) = trainer.get_train_dataloader()
    batch["labels"].fill_(-100)
    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=7)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in trainer.model.parameters())
