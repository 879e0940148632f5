"""The command line: one function a verb, tyro makes flags and help of it, errors become exit codes."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro

from lrc.config import load_recipe
from lrc.verbs.evaluate_flags import evaluate_verb
from lrc.verbs.exit_code import run_for_exit_code
from lrc.verbs.export import export_verb
from lrc.verbs.plan_verb import plan_verb
from lrc.verbs.serve_check import serve_check_verb
from lrc.verbs.sft_command import sft_verb

PROGRAM = "lrc"


def demo_verb(
    overrides: tyro.conf.Positional[tuple[str, ...]] = (), /, *, overwrite: bool = False, dry_run: bool = False
) -> None:
    """Clone the embedded 135 M teacher to half its width on this CPU, score it and show a report.

    Args:
        overrides: Changes to the demo's recipe, section.key=value.
        overwrite: Delete an earlier demo first (default: go on where it was).
        dry_run: Fetch teacher and text, check everything, then stop.
    """
    from lrc.verbs.demo import demo

    demo(overrides, overwrite=overwrite, dry_run=dry_run)


def prepare_verb(
    recipe: tyro.conf.Positional[Path],
    overrides: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Make token shards of raw text and chats; run it again after a kill and it goes on.

    Args:
        recipe: YAML file with prepare.sources.
        overrides: Changes, section.key=value.
        overwrite: Replace data that was prepared before.
        dry_run: Check recipe, tokenizer and sources, then stop.
    """
    from lrc.verbs.data_extra import require_data_extra

    require_data_extra()
    from lrc.verbs.prepare import prepare

    shards = prepare(load_recipe(recipe, overrides), overwrite=overwrite, dry_run=dry_run)
    if not dry_run:
        print(shards)


def train_verb(
    recipe: tyro.conf.Positional[Path],
    overrides: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    resume: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Train a student's projections.

    Args:
        recipe: YAML file; see configs/recipes and docs/formats.md.
        overrides: Changes, section.key=value.
        resume: "auto" for the newest checkpoint of the run, or a checkpoint folder.
        overwrite: Delete an earlier training of this run first.
        dry_run: Check recipe, teacher and data, then stop.
    """
    from lrc.verbs.train import train

    train(load_recipe(recipe, overrides), resume=resume, overwrite=overwrite, dry_run=dry_run)


def check_verb(
    teacher: tyro.conf.Positional[str],
    /,
    *,
    tiny: bool = False,
    hidden_size: int | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Prove that a teacher can be cloned: identity, merge, gradients, falling loss, export, cache.

    Args:
        teacher: Folder or hub id.
        tiny: Read the config only and check a tiny random model of it.
        hidden_size: Width of the checked student (default: about half of the teacher's).
        trust_remote_code: Run code that comes with the teacher.
    """
    from lrc.verbs.check import check

    check(teacher, tiny=tiny, hidden_size=hidden_size, trust_remote_code=trust_remote_code)


def convert_verb(
    checkpoint: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    /,
    *,
    teacher: str | None = None,
    dtype: str | None = None,
    max_shard_bytes: int | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Merge a checkpoint into a plain Hugging Face folder and prove that it is the same model.

    A flag that is left out is as the run's recipe says (convert.*). The proof takes the most memory: the teacher in
    float32, of one above 1 GiB a layer at a time; composites, stacked experts and fp8 or mxfp4 weights always whole.

    Args:
        checkpoint: checkpoint-N folder or its model.safetensors.
        out: Folder of the student.
        teacher: Where the teacher lies now, if not where it was trained.
        dtype: teacher (as stored, the default), float32, bfloat16 or float16.
        max_shard_bytes: Largest weights file (2000000000).
        trust_remote_code: Run code that comes with the teacher.
        overwrite: Replace the folder.
        dry_run: Check everything, write nothing.
    """
    from lrc.verbs.convert import convert
    from lrc.verbs.run_recipe import convert_settings

    settings = convert_settings(checkpoint)
    convert(
        checkpoint,
        out,
        teacher=teacher,
        dtype=settings.dtype if dtype is None else dtype,
        max_shard_bytes=settings.max_shard_bytes if max_shard_bytes is None else max_shard_bytes,
        trust_remote_code=trust_remote_code,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    if not dry_run:
        print(out)


def report_verb(
    run: tyro.conf.Positional[Path],
    /,
    *,
    push_to_hub: str | None = None,
    student: Path | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> None:
    """Make one HTML page and a model card of everything that a run's verbs wrote; upload the student if asked to.

    Args:
        run: The run folder.
        push_to_hub: OWNER/NAME on the Hugging Face hub to upload the student with its card to.
        student: Folder to upload (default: RUN/sft, else RUN/convert).
        private: Make a new repository private.
        dry_run: List what would be written and uploaded, and do neither.
    """
    from lrc.verbs.report import report

    page = report(run, push_to_hub=push_to_hub, student=student, private=private, dry_run=dry_run)
    if not dry_run:
        print(page)


def chat_verb(
    model: tyro.conf.Positional[str],
    /,
    *,
    teacher: str | None = None,
    prompt: str | None = None,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    system: str | None = None,
) -> None:
    """Talk with a model folder.

    Args:
        model: Folder or hub id.
        teacher: Folder or hub id of a model to answer beside it.
        prompt: Answer this and end; without it a conversation starts.
        max_new_tokens: Longest answer.
        temperature: 0 is greedy.
        system: System message.
    """
    from lrc.verbs.chat import chat

    code = chat(
        model, teacher=teacher, prompt=prompt, max_new_tokens=max_new_tokens, temperature=temperature, system=system
    )
    if code:
        raise SystemExit(code)


VERBS: dict[str, Callable[..., None]] = {
    "demo": demo_verb,
    "prepare": prepare_verb,
    "train": train_verb,
    "plan": plan_verb,
    "check": check_verb,
    "convert": convert_verb,
    "sft": sft_verb,
    "export": export_verb,
    "serve-check": serve_check_verb,
    "evaluate": evaluate_verb,
    "report": report_verb,
    "chat": chat_verb,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns 0, 1 (failed), 2 (bad input) or 130 (ctrl-C)."""
    return run_for_exit_code(
        lambda: tyro.extras.subcommand_cli_from_dict(VERBS, prog=PROGRAM, args=arguments, description=_DESCRIPTION),
        prefix=f"{PROGRAM}: ",
    )


_DESCRIPTION = "Low-Rank Clone: turn a big open-weight language model into a small one."

if __name__ == "__main__":
    sys.exit(main())
