"""One fine-tuning run on TRL's trainer: its arguments from the recipe, its log as ours, LoRA merged at the end."""

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
from datasets import Dataset, disable_progress_bars
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.sft_config import SFTConfig as TrainerSettings
from trl.trainer.sft_trainer import SFTTrainer

from lrc.errors import NumericsError
from lrc.sft.teacher_kl import TeacherSFTTrainer
from lrc.sft_config import SftConfig

LOGGED = {
    "loss": "loss",
    "kl_loss": "kl_loss",
    "mean_token_accuracy": "token_accuracy",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "num_tokens": "tokens",
}
"""Name in TRL's log -> name in `metrics.jsonl`."""
TRAINER_STATE = "trainer_state.json"
"""Of a checkpoint, which is written in place, the file that comes last."""


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What a run needs."""

    student: Any
    """Causal LM in float32."""
    tokenizer: Any
    teacher: Any
    """Frozen causal LM, or None."""
    sequences: Path
    """Arrow file of `input_ids` and `labels`."""
    settings: SftConfig
    work: Path
    """Folder of checkpoints and `metrics.jsonl`."""
    device: torch.device
    dtype: torch.dtype
    """bfloat16: mixed precision."""
    resume: bool
    progress: Callable[[int, int], None]
    note: Callable[[str], None]
    """Takes a line on what LoRA leaves as it is."""


def fine_tune(run: FineTuning) -> tuple[Any, dict[str, Any]]:
    """Train, and return the student (LoRA merged) and facts for `sft.json`.

    Raises:
        NumericsError: The loss was not finite.
    """
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL's trainers report each start to the hub otherwise
    if not sys.stderr.isatty():
        disable_progress_bars()  # a bar that no terminal redraws only litters logs
    dataset = Dataset.from_file(str(run.sequences))
    common: dict[str, Any] = {
        "model": run.student,
        "args": trainer_settings(run.settings, run.work, device=run.device, dtype=run.dtype),
        "train_dataset": dataset,
        "processing_class": run.tokenizer,
        "peft_config": lora_config(run.settings),
        "callbacks": [_Log(run.work / "metrics.jsonl", run.progress)],
    }
    trainer: Any
    if run.teacher is None:
        trainer = SFTTrainer(**common)
    else:
        trainer = TeacherSFTTrainer(teacher=run.teacher, teacher_kl=run.settings.teacher_kl, **common)
    trainer.remove_callback(PrinterCallback)  # prints every log line to standard output
    if run.settings.lora_rank and trainer.is_world_process_zero() and (frozen := frozen_by_lora(trainer.model)):
        run.note(f"note: LoRA leaves these as they are, which are no linear layers to it: {', '.join(frozen)}")
    newest = newest_checkpoint(run.work) if run.resume else None
    result = trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    model = trainer.model.merge_and_unload() if run.settings.lora_rank else trainer.model
    facts = {
        "steps": int(trainer.state.global_step),
        "rows": len(trainer.train_dataset),
        "processes": trainer.accelerator.num_processes,
        "loss": mean_loss(trainer.state.log_history),
        "seconds": float(result.metrics["train_runtime"]),
    }
    return model, facts


def mean_loss(history: list[dict[str, Any]]) -> float:
    """Return the mean loss over all steps of a run, whatever sittings it took.

    Args:
        history: The trainer's log, which its checkpoints hold too; a line has the mean since the one before.
    """
    total, last = 0.0, 0
    for line in history:
        if "loss" in line:
            total += line["loss"] * (line["step"] - last)
            last = line["step"]
    return total / last


def newest_checkpoint(work: Path) -> Path | None:
    """Return the newest checkpoint whose save came to its end, or None; a kill leaves half-written ones."""
    whole = [path.parent for path in work.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE}") if _is_json(path)]
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def trainer_settings(settings: SftConfig, work: Path, *, device: torch.device, dtype: torch.dtype) -> TrainerSettings:
    """Translate the recipe's section to TRL's arguments; a process trains on one device, however many it sees."""
    names = {entry.name for entry in dataclasses.fields(TrainerSettings)}
    # transformers renamed it after 5.6 and warns of the old name, which TRL sets by default
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    renamed: dict[str, Any] = {checkpointing: settings.activation_checkpointing}
    made = TrainerSettings(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=settings.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        max_length=settings.sequence_length,
        packing=settings.packing,
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        save_total_limit=settings.save_total_limit,
        router_aux_loss_coef=0.0,  # else TRL adds the balancing loss of a mixture of experts
        seed=settings.seed,
        bf16=dtype == torch.bfloat16,
        use_cpu=device.type == "cpu",
        disable_tqdm=True,
        report_to="none",
        **renamed,
    )
    # a process that was not launched with others would share its batches out over all GPUs, which TRL refuses
    made._n_gpu = min(1, made.n_gpu)
    return made


def lora_config(settings: SftConfig) -> Any:
    """Return PEFT's configuration, or None where all weights are trained."""
    if not settings.lora_rank:
        return None
    from peft import LoraConfig  # an optional package, asked for before

    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def frozen_by_lora(model: Any) -> list[str]:
    """Return the kinds of matrices that LoRA does not train, embedding and head apart; layer numbers become N.

    PEFT reaches linear layers, and experts stored as one tensor of those families alone that it knows.

    Args:
        model: A PEFT model.
    """
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    reached = {id(model.get_output_embeddings().weight)}
    for module in model.modules():
        if isinstance(module, ParamWrapper):
            reached.add(id(module.get_param()))  # type: ignore[no-untyped-call]  # peft's own
        elif isinstance(module, LoraLayer):
            reached.add(id(module.get_base_layer().weight))
        elif isinstance(module, nn.Embedding):
            reached.add(id(module.weight))
    frozen = (name for name, tensor in model.named_parameters() if _is_frozen(tensor) and id(tensor) not in reached)
    return sorted({_kind(name) for name in frozen})


def _is_frozen(tensor: torch.Tensor) -> bool:
    return tensor.ndim > 1 and not tensor.requires_grad


def _kind(name: str) -> str:
    """`base_model.model.model.layers.3.mlp.gate.weight` -> `model.layers.N.mlp.gate.weight`."""
    plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
    return ".".join("N" if part.isdecimal() else part for part in plain.split("."))


class _Log(TrainerCallback):
    """Writes `metrics.jsonl`, shows progress, and stops a run whose loss is not finite."""

    def __init__(self, path: Path, progress: Callable[[int, int], None]) -> None:
        self._path = path
        self._progress = progress

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **trainer: Any
    ) -> None:
        """Drop the lines that a killed run wrote after the checkpoint that this one goes on from."""
        if state.is_world_process_zero and self._path.is_file():
            lines = [line for line in self._path.read_text().splitlines() if line.endswith("}")]
            kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
            self._path.write_text("".join(f"{line}\n" for line in kept))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **trainer: Any
    ) -> None:
        """Move the progress, and log the last step whatever its number, and that of a checkpoint."""
        # or a resumed run would not know the losses between the last line and its checkpoint
        control.should_log = control.should_log or control.should_save or state.global_step == state.max_steps
        if state.is_world_process_zero:
            self._progress(state.global_step, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **trainer: Any,
    ) -> None:
        """Write a line of training numbers.

        Raises:
            NumericsError: The loss is not finite.
        """
        if logs is None or "loss" not in logs:
            return
        found = {ours: logs[theirs] for theirs, ours in LOGGED.items() if theirs in logs}
        if not torch.tensor(found["loss"]).isfinite():
            raise NumericsError(
                f"The loss at step {state.global_step} is {found['loss']}. Lower sft.learning_rate, or look at the "
                "chats of the last steps."
            )
        if state.is_world_process_zero:
            with self._path.open("a") as stream:
                stream.write(json.dumps({"kind": "sft", "step": state.global_step, **found}) + "\n")
