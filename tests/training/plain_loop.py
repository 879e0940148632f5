"""The reference of a run that trains plain weights: a stock student, torch's losses, autograd and AdamW, no pair."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrc.config import Recipe
from lrc.data.blocks import BatchPlan, open_blocks, step_batches
from lrc.models.teacher import load_tokenizer


def plain_training(
    recipe: Recipe,
    teacher: Any,
    student: Any,
    *,
    free: dict[str, Tensor],
    steps: range,
    moments: dict[str, Tensor] | None = None,
) -> None:
    """Train `free`, tensors of a stock `student`, in place, on the sequences that the recipe's run sees.

    Args:
        recipe: With the token-mean KL at temperature 1, a linear schedule without warm-up, no clone terms.
        teacher: A stock model.
        student: Another one.
        free: What is trained, by a name that only `moments` refers to.
        steps: The run's steps that are done.
        moments: AdamW's state at the first of them, as a checkpoint holds it; left out: none, for none of them.
    """
    train, objective = recipe.train, recipe.objective
    assert train.warmup_ratio == 0
    blocks = open_blocks(
        recipe.data.train, load_tokenizer(Path(recipe.teacher)), sequence_length=recipe.data.sequence_length,
        vocab_size=teacher.config.vocab_size,
    )  # fmt: skip
    plan = BatchPlan(
        seed=train.seed,
        batch_size=train.batch_size,
        accumulation=train.gradient_accumulation_steps,
        num_ranks=1,
        rank=0,
    )
    for value in free.values():
        value.requires_grad_()
    betas, decay = (train.beta1, train.beta2), train.weight_decay
    optimizer = torch.optim.AdamW(free.values(), lr=0.0, betas=betas, weight_decay=decay)
    for name, value in free.items():
        if moments is not None and f"step/{name}" in moments:
            optimizer.state[value] = {
                key: moments[f"{key}/{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")
            }
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = train.learning_rate * (1 - step / train.max_steps)
        batches = step_batches(blocks, plan, step, document_masking=recipe.data.document_masking)
        loss = torch.zeros(())
        labels = sum(batch.num_labels for batch in batches)
        for batch in batches:
            inputs = {"input_ids": batch.input_ids, "position_ids": batch.positions, "use_cache": False}
            logits, kept = student(**inputs).logits, batch.labels != -100
            lm = F.cross_entropy(logits[kept], batch.labels[kept], reduction="sum")
            theirs = teacher(**inputs).logits[kept].softmax(-1)
            kl = F.kl_div(logits[kept].log_softmax(-1), theirs, reduction="sum")
            loss = loss + (objective.lm_weight * lm + objective.kl_weight * kl) / labels
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(free.values(), train.max_grad_norm)
        optimizer.step()
