"""The recipe's section `sft`: supervised fine-tuning of a finished student on chats."""

import math
from dataclasses import dataclass
from typing import Literal

SFT_FACTS = "sft.json"
"""What `lrc sft` writes beside a student; its exports carry it on."""
ABOVE_ZERO = (
    "held_out_chats sequence_length epochs max_steps batch_size gradient_accumulation_steps learning_rate "
    "max_grad_norm log_steps save_steps save_total_limit lora_alpha"
)
NOT_NEGATIVE = "teacher_kl weight_decay lora_rank seed"
SHARES = "max_bad_share warmup_ratio lora_dropout"


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning; published: UltraChat-200k, 1 epoch, 1e-5, linear, warm-up 0.1, cut-off 2048."""

    model: str | None = None
    """Folder or hub id of the student; None: `RUN/convert`."""
    data: str | None = None
    """Chats: file, folder, glob or URL of messages, conversations (ShareGPT) or instruction rows (Alpaca)."""
    held_out: str | None = None
    """Chats to measure on before and after; None: none."""
    held_out_chats: int = 64
    """Chats of `held_out` that are measured, from the front."""
    teacher_kl: float = 0.0
    """Weight of KL(teacher || student) at T = 1 on the answers' tokens, the recipe's teacher frozen (published: 0)."""
    sequence_length: int = 2_048
    """Longest chat in tokens (published: 2048)."""
    over_long: Literal["truncate", "drop"] = "truncate"
    """What becomes of a longer one: its end is cut off, or all of it is left out; both are counted."""
    packing: bool = False
    """Several chats fill a row of `sequence_length` tokens; attention and positions stay inside a chat."""
    max_bad_share: float = 0.0
    """Share of the rows that may be no usable chat; they are counted and left out."""
    epochs: float = 1.0
    """Passes over the chats (published: 1)."""
    max_steps: int | None = None
    """Optimiser steps, whatever `epochs` says; None: all of the epochs."""
    batch_size: int = 6
    """Rows of a micro-batch on one process (published: 6)."""
    gradient_accumulation_steps: int = 4
    """Micro-batches of an optimiser step (published: 4)."""
    learning_rate: float = 1e-5
    """Peak learning rate (published: 1e-5)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After warm-up: linear (published) or cosine decay to 0, or constant."""
    warmup_ratio: float = 0.1
    """Share of the steps that the learning rate rises over (published: 0.1)."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradient norm that larger ones are scaled down to."""
    lora_rank: int = 0
    """Rank of LoRA on every linear layer but the head, merged at the end; 0: all weights are trained (published).

    Experts that are no linear layers are trained where PEFT knows their family; what stays as it is is told."""
    lora_alpha: int = 16
    """LoRA's scale: the update is multiplied by `lora_alpha / lora_rank`."""
    lora_dropout: float = 0.0
    """Dropout in front of LoRA's update."""
    log_steps: int = 10
    """Optimiser steps between two lines of `metrics.jsonl`."""
    save_steps: int = 500
    """Optimiser steps between two checkpoints to resume from."""
    save_total_limit: int = 1
    """Checkpoints kept while training; the finished folder has none."""
    seed: int = 0
    """Order of the chats, LoRA's start values."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """As `train.compute_dtype`; the trained weights stay float32 until they are written in the student's dtype."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """As `train.device`."""


def sft_problems(settings: SftConfig) -> list[str]:
    """Check what the types can't say; returns a line a problem."""
    problems = []
    for name in ABOVE_ZERO.split():
        value = getattr(settings, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            problems.append(f"sft.{name} must be a finite number above 0, found {value}")
    for name in NOT_NEGATIVE.split():
        value = getattr(settings, name)
        if not (value >= 0 and math.isfinite(value)):
            problems.append(f"sft.{name} must be a finite number of at least 0, found {value}")
    for name in SHARES.split():
        value = getattr(settings, name)
        if not 0 <= value < 1:
            problems.append(f"sft.{name} must lie in 0..1, 1 left out, found {value}")
    return problems
