"""The flags of the published training command, and the checks that need no more than the flags and the launcher.

Names and defaults are the original's, save the temperature's: 10 there, while every published model was trained with
40. `published_train.py` turns the values into a recipe. Flags that name something the method here does not have are
errors; flags that only steered the original's internals are noted.
"""

from dataclasses import dataclass
from typing import Any, Literal

from lrc.method_config import Method
from lrc.verbs.published_flags import WORDS_FOR_TRUE, flag, nearest, spell
from lrc.verbs.published_launch import Launch

LRC_MODEL = "distill"
METHOD_OF_MODEL: dict[str, Method] = {
    LRC_MODEL: "clone",
    "origin": "origin",
    "only_kd": "only_kd",
    "tiny_bert": "tiny_bert",
}
"""Published name of a model class -> recipe's method."""
TAG_SEPARATOR = "-"

TERM_OF_LOSS = {
    "attn-q-sim-loss": "attn-q",
    "attn-k-sim-loss": "attn-k",
    "attn-v-sim-loss": "attn-v",
    "attn-in-sim-loss": "attn-in",
    "attn-out-sim-loss": "attn-out",
    "mlp-gate-loss": "mlp-gate",
    "mlp-up-loss": "mlp-up",
    "mlp-in-loss": "mlp-in",
    "mlp-out-loss": "mlp-out",
}
"""Published name of a clone loss -> name of the clone term."""

Schedule = Literal["linear", "cosine", "wsd", "constant"]
SCHEDULE_OF_NAME: dict[str, Schedule] = {
    "linear": "linear",
    "cosine": "cosine",
    "warmup_stable_decay": "wsd",
    "constant": "constant",
    "constant_with_warmup": "constant",
}


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """Train a Low-Rank Clone student with the published objective."""

    target_hidden_size: int = flag(1024, "width of the student's residual stream")
    raw_model_name: str | None = flag(None, "folder or hub id of the teacher; required")
    model_cls: str = flag(LRC_MODEL, f"what to train: {LRC_MODEL} is LRC; origin, only_kd, tiny_bert are baselines")
    dataset_name: str | None = flag(None, "tokenised JSON lines: file, folder or glob; required")
    output_dir: str = flag("../ckpts", "folder that run folders are made in")
    num_epochs: int = flag(1, "not used: --max-steps sets the length")
    batch_size: int = flag(4, "sequences of one micro-batch on one process")
    learning_rate: float = flag(1e-4, "peak learning rate")
    warmup_ratio: float = flag(0.005, "share of the steps that the learning rate rises over")
    target_rms_norm_eps: float = flag(1e-5, "not used: the student keeps the teacher's eps")
    gradient_accumulation_steps: int = flag(1, "micro-batches of one optimiser step")
    log_steps: int = flag(100, "steps between two lines of metrics")
    save_steps: int = flag(20000, "steps between two checkpoints")
    max_steps: int = flag(-1, "optimiser steps; required")
    data_max_len: int = flag(1024, "positions of a training sequence")
    project_name: str = flag("expt-small-llm", "not used: trackers name the project themselves")
    tie_n: int = flag(-1, "layers that share projections; only -1, 0 and 1 (none)")
    tie_word_emb_proj: bool = flag(False, "one projection for embedding and head")
    max_grad_norm: float = flag(1.0, "gradient norm that larger ones are scaled down to")
    aux_loss_scale_factor: float = flag(1.0, "weight of the clone loss")
    use_aux_loss: bool = flag(True, "train on the clone loss")
    use_logits_loss: bool = flag(True, "train on KL(teacher || student)")
    use_std_like_attn: bool = flag(False, "not supported")
    student_attn_from_scratch: bool = flag(False, "not supported")
    del_layers: str = flag("", "not supported: every layer has a student")
    ban_layers: str = flag("", "not supported: clone terms are left out by name, in every layer")
    use_in_out_mlp: bool = flag(False, "True: io ffn (gate and up share a projection), False: all ffn")
    use_all_attn: bool = flag(False, "True: all attn, False: io attn (q, k, v share a projection)")
    use_additional_align: bool = flag(False, "not supported")
    gpus: int = flag(1, "not used: the launcher starts one process a GPU")
    resume_checkpoint: str | None = flag(None, "checkpoint to go on from, in its run folder; auto: the newest run's")
    load_model_weight_path: str | None = flag(None, "not supported")
    check_data_cls_loss: bool = flag(False, "log the LM loss of each data class")
    extra_tags: str = flag("ordinary", "comma list: tracker tags, and the name of the run's parent folder")
    kl_temperature: float = flag(40.0, "softmax temperature of the KL term; the original's code has 10")
    lr_scheduler: str = flag("linear", f"one of {', '.join(SCHEDULE_OF_NAME)}")
    aux_loss_type: str = flag("mseloss", "error of the clone terms; only mseloss")
    use_ntp_loss: bool = flag(True, "train on the student's next-token cross entropy")
    str_ban_losses: str = flag("no", f"comma list of clone terms to leave out, of {', '.join(TERM_OF_LOSS)}; or no")
    use_accelerate: bool = flag(False, "not used: training always runs on Accelerate")
    adam_beta2: float = flag(0.999, "AdamW's second-moment decay")
    report_to: str = flag("none", "comma list of trackers (tensorboard, wandb, trackio); not in the original")
    dry_run: bool = flag(False, "check everything, train nothing; not in the original")


UNUSED = {
    "num_epochs": "--max-steps alone sets the length of the run",
    "target_rms_norm_eps": "the student trains with the teacher's eps, the one it is exported with",
    "project_name": "trackers name the project themselves",
    "gpus": "the launcher starts one process a GPU",
}
"""Flags that are accepted and do nothing, with the reason that is printed when one is given."""

UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "use_std_like_attn": (False, "the original refuses it too"),
    "student_attn_from_scratch": (False, "the student's attention is the teacher's, merged"),
    "use_additional_align": (False, "its extra projections are no part of the student"),
    "del_layers": ("", "every layer of the teacher has a layer of the student"),
    "ban_layers": ("", "leave clone terms out by name with --str-ban-losses"),
    "load_model_weight_path": (None, "use --resume-checkpoint to go on from a checkpoint"),
    "aux_loss_type": ("mseloss", "clone terms are mean squared errors"),
}
"""Flags with one supported value, and the reason that an error gives for any other."""


def find_problems(flags: TrainFlags, launch: Launch) -> list[str]:
    """List everything that keeps the flags from being honoured; each entry names its flag."""
    problems = []
    if not flags.raw_model_name:
        problems.append("--raw-model-name (folder or hub id of the teacher) is required")
    if not flags.dataset_name:
        problems.append("--dataset-name (tokenised JSON lines) is required")
    if flags.max_steps < 1:
        problems.append(
            f"--max-steps must be at least 1, found {flags.max_steps} "
            "(for whole epochs: sequences / (batch size * accumulation steps * processes))"
        )
    if not (flags.use_aux_loss or flags.use_logits_loss or flags.use_ntp_loss):
        problems.append("--use-aux-loss, --use-logits-loss and --use-ntp-loss can't all be False")
    for name, (supported, reason) in UNSUPPORTED.items():
        found = getattr(flags, name)
        if found != supported:
            problems.append(f"{spell(name)} {found} is not supported ({reason})")
    if flags.tie_n > 1:
        problems.append(f"--tie-n {flags.tie_n} is not supported (the original refuses it too)")
    if flags.model_cls not in METHOD_OF_MODEL:
        problems.append(f"unknown --model-cls {flags.model_cls}; {nearest(flags.model_cls, list(METHOD_OF_MODEL))}")
    if flags.lr_scheduler not in SCHEDULE_OF_NAME:
        hint = nearest(flags.lr_scheduler, list(SCHEDULE_OF_NAME))
        problems.append(f"unknown --lr-scheduler {flags.lr_scheduler}; {hint}")
    if (flags.resume_checkpoint or "").lower() in WORDS_FOR_TRUE:
        problems.append("--resume-checkpoint must name a checkpoint folder, or be auto for the newest run's")
    for name in ("gradient_accumulation_steps", "max_grad_norm"):
        wanted, fixed = getattr(flags, name), getattr(launch, name)
        if fixed is not None and wanted != fixed:
            problems.append(f"{spell(name)} is {wanted:g}, but the launcher's DeepSpeed configuration says {fixed:g}")
    return problems + _find_tag_problems(flags) + _find_ban_problems(flags)


def _find_tag_problems(flags: TrainFlags) -> list[str]:
    tags = split_list(flags.extra_tags)
    problems = [f"tag {tag!r} can't be part of a folder's name" for tag in tags if "/" in tag or "\\" in tag]
    if TAG_SEPARATOR.join(tags) in ("", ".", ".."):
        problems.append(f"--extra-tags must name at least one tag, found {flags.extra_tags!r}")
    return problems


def _find_ban_problems(flags: TrainFlags) -> list[str]:
    names = split_list(flags.str_ban_losses)
    if "no" in names and len(names) > 1:
        return [f"--str-ban-losses takes no or a list of losses, not both; found {flags.str_ban_losses!r}"]
    return [
        f"--str-ban-losses names an unknown loss {name}; {nearest(name, list(TERM_OF_LOSS))}"
        for name in names
        if name not in TERM_OF_LOSS and name != "no"
    ]


def split_list(text: str) -> tuple[str, ...]:
    """Split a comma list; empty parts count for nothing."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
