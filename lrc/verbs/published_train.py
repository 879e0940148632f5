"""The published training command: what its flags mean as a recipe.

`hf_trainer.py` calls `main`; `translate` is pure. The recipe has the published objective, docs/method.md section 10.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lrc.config import (
    ObjectiveConfig,
    Recipe,
    StudentConfig,
    TrainConfig,
    validate,
)
from lrc.data_config import DataConfig
from lrc.errors import ConfigError
from lrc.start_config import StartConfig
from lrc.training.preemption import preemption_signals
from lrc.verbs.published_flags import parse_flags, run_command, spell
from lrc.verbs.published_launch import Launch, agree_on_run, read_launch
from lrc.verbs.published_train_flags import (
    METHOD_OF_MODEL,
    SCHEDULE_OF_NAME,
    TAG_SEPARATOR,
    TERM_OF_LOSS,
    UNUSED,
    TrainFlags,
    find_problems,
    split_list,
)

PROGRAM = "hf_trainer.py"
PUBLISHED_SEED = 429
PUBLISHED_CHECKPOINTS_KEPT = 10
PUBLISHED_DECAY_RATIO = 0.1
"""Share of the steps that the original's `warmup_stable_decay` decays over."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """The call of `lrc train` that a published command line stands for."""

    recipe: Recipe
    resume: str | None
    dry_run: bool
    notes: tuple[str, ...]
    """Lines for stderr: flags that were given and do nothing here, and what was chosen for one that was not given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the published training command; return its exit code."""
    return run_command(lambda: _train(sys.argv[1:] if argv is None else argv))


def translate(argv: Sequence[str], launch: Launch) -> Translation:
    """Translate the published flags into a recipe with the published objective (docs/method.md section 10).

    Raises:
        ConfigError: Flags that are unknown, contradict each other or the launcher, or can't be honoured.
    """
    flags, given = parse_flags(argv, TrainFlags, program=PROGRAM)
    problems = find_problems(flags, launch)
    if problems:
        raise ConfigError(f"{PROGRAM}: " + "; ".join(problems) + ".")
    without, notes = _translate_bans(flags)
    notes += [f"{spell(name)} is not used: {reason}." for name, reason in UNUSED.items() if name in given]
    if "use_accelerate" in given and not flags.use_accelerate:
        notes.append("--use-accelerate False is not used: training always runs on Accelerate.")
    if flags.use_logits_loss and "kl_temperature" not in given:
        notes.append(
            f"--kl-temperature is not given, so it is {flags.kl_temperature:g}, with which every published model was "
            "trained; the original's code has 10."
        )
    run, resume_note = _choose_run(flags, launch)
    recipe = _build_recipe(flags, launch, run=run, without=without)
    validate(recipe, origin=PROGRAM)
    return Translation(
        recipe=recipe, resume=flags.resume_checkpoint, dry_run=flags.dry_run, notes=(*notes, *resume_note)
    )


def _train(argv: Sequence[str]) -> None:
    launch = read_launch(os.environ)
    translation = translate(argv, launch)
    with preemption_signals():
        recipe = replace(translation.recipe, run=agree_on_run(translation.recipe.run, launch))
    is_main = launch.rank == 0
    if is_main:
        for note in translation.notes:
            print(f"note: {note}", file=sys.stderr)
    from lrc.verbs.train import train

    checkpoint = train(recipe, resume=translation.resume, dry_run=translation.dry_run)
    if is_main and not translation.dry_run:
        print(f"checkpoint: {checkpoint}")
        student = Path(recipe.run) / "convert"
        print(f"convert it: python convert_ckpt.py --ckpt-path {_quote(checkpoint)} --save-path {_quote(student)}")


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def _translate_bans(flags: TrainFlags) -> tuple[tuple[str, ...], list[str]]:
    """Return the clone terms to leave out, and a note on each named one that the variant does not have."""
    if METHOD_OF_MODEL[flags.model_cls] != "clone":
        names = [name for name in split_list(flags.str_ban_losses) if name != "no"]
        return (), [f"--str-ban-losses {name} is not used: {flags.model_cls} has no such loss." for name in names]
    missing = {"attn-in"} if flags.use_all_attn else {"attn-q", "attn-k", "attn-v"}
    missing |= {"mlp-gate", "mlp-up"} if flags.use_in_out_mlp else {"mlp-in"}
    without, notes = [], []
    for name in split_list(flags.str_ban_losses):
        if name == "no":
            continue
        if TERM_OF_LOSS[name] in missing:
            notes.append(f"--str-ban-losses {name} is not used: this variant has no such loss.")
        else:
            without.append(TERM_OF_LOSS[name])
    return tuple(without), notes


def _choose_run(flags: TrainFlags, launch: Launch) -> tuple[Path, tuple[str, ...]]:
    """Return the run folder and notes on it.

    A new one, the one that the checkpoint to resume (`RUN/train/checkpoint-N`) is in, or for `auto` the newest one with
    a checkpoint among those of these tags.
    """
    runs = Path(flags.output_dir) / TAG_SEPARATOR.join(split_list(flags.extra_tags))
    if flags.resume_checkpoint == "auto":
        run = _newest_run(runs)
        if run is not None:
            return run, (f"--resume-checkpoint auto goes on with the run {run}.",)
        return runs / launch.time, (f"--resume-checkpoint auto begins anew: no run in {runs} has a checkpoint.",)
    if flags.resume_checkpoint:
        checkpoint = Path(flags.resume_checkpoint)
        if checkpoint.parent.name == "train":
            run = checkpoint.parent.parent
            return run, (f"--output-dir is not used: the resumed run goes on in {run}.",)
    return runs / launch.time, ()


def _newest_run(runs: Path) -> Path | None:
    """Return the last run, by the time that it is named after, that has a checkpoint."""
    from lrc.training.checkpoint_list import checkpoints

    found = [path for path in runs.glob("*") if checkpoints(path / "train")]
    return max(found, key=lambda path: path.name, default=None)


def _build_recipe(flags: TrainFlags, launch: Launch, *, run: Path, without: tuple[str, ...]) -> Recipe:
    assert flags.raw_model_name is not None and flags.dataset_name is not None
    return Recipe(
        run=str(run),
        teacher=flags.raw_model_name,
        method=METHOD_OF_MODEL[flags.model_cls],
        student=StudentConfig(
            hidden_size=flags.target_hidden_size,
            attention_projections="all" if flags.use_all_attn else "io",
            ffn_projections="io" if flags.use_in_out_mlp else "all",
            tie_embedding_projection=flags.tie_word_emb_proj,
        ),
        start=StartConfig(method="random"),
        objective=ObjectiveConfig(
            temperature=flags.kl_temperature,
            kl_reduction="published",
            lm_weight=1.0 if flags.use_ntp_loss else 0.0,
            kl_weight=1.0 if flags.use_logits_loss else 0.0,
            clone_weight=flags.aux_loss_scale_factor if flags.use_aux_loss else 0.0,
            clone_error="raw",
            clone_reduction="sum",
            attention_output_space="teacher",
            without=without,
        ),
        data=DataConfig(train=flags.dataset_name, sequence_length=flags.data_max_len, document_masking=False),
        train=TrainConfig(
            max_steps=flags.max_steps,
            batch_size=flags.batch_size,
            gradient_accumulation_steps=flags.gradient_accumulation_steps,
            learning_rate=flags.learning_rate,
            schedule=SCHEDULE_OF_NAME[flags.lr_scheduler],
            # transformers' plain `constant` has no warm-up.
            warmup_ratio=0.0 if flags.lr_scheduler == "constant" else flags.warmup_ratio,
            decay_ratio=PUBLISHED_DECAY_RATIO,
            beta2=flags.adam_beta2,
            max_grad_norm=flags.max_grad_norm,
            log_steps=flags.log_steps,
            save_steps=flags.save_steps,
            save_total_limit=PUBLISHED_CHECKPOINTS_KEPT,
            seed=PUBLISHED_SEED,
            compute_dtype="auto",
            device="cpu" if launch.wants_cpu else "auto",
            trackers=tuple(name for name in split_list(flags.report_to) if name != "none"),
            tags=split_list(flags.extra_tags),
            log_data_classes=flags.check_data_cls_loss,
        ),
    )
