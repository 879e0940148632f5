"""TRL's SFT trainer with the teacher beside the student: loss = LM + weight * KL(teacher || student), on answers only.

LM stays TRL's. The KL is `clone/head.py:head_losses`, the one formula of the package, at temperature 1, on the hidden
states that the student's forward of the LM loss made anyway: the student runs once.
"""

from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from trl.trainer.sft_trainer import SFTTrainer

from lrc.clone.head import IGNORED_LABEL, HeadWeights, head_losses
from lrc.models.head_reader import HeadReader


class TeacherSFTTrainer(SFTTrainer):
    """SFT with the teacher as a KL target on the tokens that are learnt."""

    def __init__(self, *, teacher: Any, teacher_kl: float, **trainer: Any) -> None:
        """Make the trainer.

        Args:
            teacher: Frozen causal LM with the student's vocabulary, on the training device.
            teacher_kl: Weight of the KL term.
            trainer: What `SFTTrainer` takes.

        Raises:
            ConfigError: The architecture is unknown to discovery.
        """
        super().__init__(**trainer)
        student: Any = self.model
        self._student = HeadReader(student.get_base_model() if is_peft_model(student) else student)
        self._teacher = HeadReader(teacher)
        self._weight = teacher_kl
        self._kl_sums = torch.zeros(2, dtype=torch.float64)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Add the KL term to TRL's loss; both are sums over learnt tokens divided by the step's number of them."""
        with self._student.captured() as states:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]  # trl's own
        objective, outputs = loss if return_outputs else (loss, None)
        with torch.autocast(
            states[0].device.type, enabled=False
        ):  # the head's losses are float32 whatever the model is
            kl_sum, learnt = self._kl(states[0], inputs)
        count = torch.as_tensor(learnt if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        share = kl_sum / count.to(kl_sum.device)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            share = share * self.accelerator.num_processes  # as TRL: DDP averages what the count has summed
        objective = objective + self._weight * share
        if self._student.model.training:
            self._kl_sums += torch.stack([kl_sum.detach().double().cpu(), torch.tensor(float(learnt)).double()])
        return (objective, outputs) if return_outputs else objective

    def _kl(self, hidden: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, int]:
        """KL summed over the learnt tokens of a batch, nats, and their number."""
        labels = inputs["labels"][:, 1:]
        learnt = labels != IGNORED_LABEL
        context = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
        with torch.no_grad():
            teacher = self._teacher.base(**context, use_cache=False).last_hidden_state
        total, _, _ = head_losses(
            self._student.inputs(hidden[:, :-1][learnt]),
            self._teacher.inputs(teacher[:, :-1][learnt]),
            self._student.matrix(),
            self._teacher.matrix(),
            labels[learnt],
            weights=HeadWeights(lm=0.0, kl=1.0, softcap=self._student.softcap),
        )
        return total, int(learnt.sum())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean KL since the last line to TRL's numbers."""
        if self._student.model.training and "loss" in logs:
            total, count = self.accelerator.reduce(self._kl_sums.to(self.accelerator.device), reduction="sum").tolist()
            logs["kl_loss"] = total / max(1.0, count)
            self._kl_sums.zero_()
        super().log(logs, start_time)
