"""`lrc prepare`: raw text and chats become `RUN/prepare`, a folder of token shards that `lrc train` reads.

The shards grow in `RUN/.prepare`, a file at a time, and the folder gets its name when it is whole; what a killed run
leaves there is gone on with.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from lrc.config import Recipe
from lrc.data.assemble import BAD_ROWS, HELD_OUT_ROWS, PREVIEW, assemble, write_preview
from lrc.data.benchmark_rows import list_benchmarks
from lrc.data.encoder import save_encoder
from lrc.data.executors import LOGS, SUBMITTED, count_unfinished, run_here, run_on_ray, submit_to_slurm
from lrc.data.plan_tasks import fingerprint, plan_files
from lrc.data.prepare_task import PrepareTask, remove_drafts
from lrc.data.shards import MANIFEST
from lrc.data.stages import TOKENISE, Stage, all_stages
from lrc.data.tokenizer_hash import tokenizer_sha256
from lrc.data_config import PrepareConfig
from lrc.errors import ConfigError, DataError
from lrc.export.folder import check_apart
from lrc.models.folder import resolve_folder
from lrc.models.teacher import load_tokenizer
from lrc.training.beside import write_beside
from lrc.training.launch import write_recipe
from lrc.verbs.progress import progress_lines, say
from lrc.verbs.sources import locate_teacher

PLAN = "plan.sha256"
RECIPE = "recipe.yaml"


def prepare(recipe: Recipe, *, overwrite: bool = False, dry_run: bool = False) -> Path:
    """Make token shards of the recipe's sources.

    Args:
        recipe: `prepare` and `teacher` are used.
        overwrite: Replace what was prepared before.
        dry_run: Check everything, then stop.

    Returns:
        `RUN/prepare`; the work folder if Slurm jobs were submitted that are not done.

    Raises:
        ConfigError: No sources, a tokenizer that can't do what they need, or something would be deleted that is read
            or that is not lrc's.
        DataError: A source is damaged, too many rows are bad, or the disk is full.
    """
    folder, draft = Path(recipe.run) / "prepare", Path(recipe.run) / ".prepare"
    _check_folder(folder, overwrite=overwrite)
    if not recipe.prepare.sources:
        raise ConfigError("prepare.sources must list at least one source.")
    teacher = resolve_folder(locate_teacher(recipe.teacher), weights=False)
    tokenizer = _check_tokenizer(load_tokenizer(teacher, trust_remote_code=recipe.trust_remote_code), recipe)
    vocab_size = _vocab_size(tokenizer)
    task = PrepareTask(
        files=plan_files(recipe.prepare),
        settings=recipe.prepare,
        vocab_size=vocab_size,
        folder=str(draft.absolute()),
    )
    sha256 = tokenizer_sha256(tokenizer)
    benchmarks = list_benchmarks(recipe.prepare.decontaminate)
    paths = [file.path for file in task.files] + [file.path for file in benchmarks]
    for replaced in (folder, draft):
        check_apart(replaced, [teacher, *(Path(path.removeprefix("file://")) for path in paths)])
    if dry_run:
        say(f"dry run: {len(task.files)} files of {len(recipe.prepare.sources)} sources: good")
        return folder
    try:
        _open_draft(draft, fingerprint(task, sha256, tokenizer.chat_template), overwrite=overwrite)
        save_encoder(tokenizer, teacher, draft, trust_remote_code=recipe.trust_remote_code)
        task.save_files()
        if not _run_stages(task, draft):
            return draft
        manifest = assemble(task, draft, tokenizer_sha256=sha256)
        length = recipe.data.sequence_length
        write_preview(draft, tokenizer, sequence_length=length, vocab_size=vocab_size)
        write_recipe(draft / RECIPE, recipe)
        aside = {HELD_OUT_ROWS} if "held_out" in manifest else set[str]()
        _finish(draft, folder, {shard["name"] for shard in manifest["shards"]}, aside)
    except OSError as error:
        raise DataError(f"{draft} can't be written: {error}. Free some space and run again: it goes on.") from error
    _say_what_went_in(manifest)
    return folder


def _check_folder(folder: Path, *, overwrite: bool) -> None:
    if folder.exists() and not overwrite:
        raise ConfigError(f"{folder} is there already. Replace it with --overwrite, or name another run (run=...).")
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty and not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"{folder} holds no {MANIFEST}, so lrc prepare has not written it, and not even --overwrite replaces it. "
            "Move it away or name another run (run=...)."
        )


def _run_stages(task: PrepareTask, draft: Path) -> bool:
    """Run what has to be done before the shards can be put together; False if jobs were submitted that do it later."""
    settings, stages = task.settings, all_stages(task)
    if settings.decontaminate:
        from lrc.data.dedupe import write_benchmark_index

        write_benchmark_index(settings, draft)
    if not (draft / SUBMITTED).is_file():  # else jobs may be writing theirs
        remove_drafts(draft)
    if settings.executor == "slurm":
        job = submit_to_slurm(stages, draft, workers=settings.workers, cluster=settings.cluster)
        if job is not None:
            say(f"submitted; the last job is {job}. When it is done (squeue --me), run the same command again")
        return job is None
    for stage in stages:
        if stage.name == TOKENISE:
            with _shown(stage, draft):
                _run_stage(stage, draft, settings)
        else:
            say(f"{stage.name}: {stage.tasks} tasks")
            with open(os.devnull, "w") as hidden, redirect_stderr(hidden):  # datatrove's own bars
                _run_stage(stage, draft, settings)
    return True


def _run_stage(stage: Stage, draft: Path, settings: PrepareConfig) -> None:
    if settings.executor == "ray":
        run_on_ray(stage, draft, workers=settings.workers, cluster=settings.cluster)
    else:
        run_here(stage, draft, workers=settings.workers or _num_cores())


def _num_cores() -> int:
    """Count the cores that this process may use; a batch system or a container may grant a few of many."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_tokenizer(tokenizer: Any, recipe: Recipe) -> Any:
    if tokenizer is None:
        raise ConfigError(f"The teacher {recipe.teacher} must have a tokenizer, but its folder has none.")
    if tokenizer.eos_token_id is None and tokenizer.bos_token_id is None:
        raise ConfigError(
            f"The tokenizer of {recipe.teacher} must have an end or begin token to part documents, but has neither. "
            "Add eos_token to its tokenizer_config.json."
        )
    if tokenizer.chat_template is None and any(source.kind == "chat" for source in recipe.prepare.sources):
        raise ConfigError(
            f"A source of kind chat needs a chat template, but the tokenizer of {recipe.teacher} has none. Add one or "
            "use an instruct teacher."
        )
    return tokenizer


def _vocab_size(tokenizer: Any) -> int:
    """Return one more than the largest id, added tokens included; a tokenizer that leaves ids out has fewer tokens."""
    return int(max(tokenizer.get_vocab().values())) + 1


def _open_draft(draft: Path, plan: str, *, overwrite: bool) -> None:
    """Make the work folder, or find what a killed run of the same plan has left in it."""
    note = draft / PLAN
    if draft.exists():
        if note.is_file() and note.read_text() == plan:
            say(f"going on with {draft}")
            return
        if not overwrite:
            raise DataError(
                f"{draft} holds a started run of another recipe, tokenizer or other input files. Start anew with "
                "--overwrite."
            )
        shutil.rmtree(draft)
    draft.mkdir(parents=True)
    write_beside(note, plan)


def _finish(draft: Path, folder: Path, shards: set[str], aside: set[str]) -> None:
    """Remove what only the work needed and give the folder its name."""
    kept = {f"{name}{suffix}" for name in shards for suffix in (".bin", ".starts")}
    kept |= {MANIFEST, BAD_ROWS, PREVIEW, RECIPE, *aside}
    if folder.exists():
        shutil.rmtree(folder)
    finished = draft.with_name(".prepare.finished")
    if finished.exists():
        shutil.rmtree(finished)
    finished.mkdir()
    for name in sorted(kept):
        _link_or_copy(draft / name, finished / name)
    os.replace(finished, folder)
    shutil.rmtree(draft / LOGS, ignore_errors=True)
    shutil.rmtree(draft)


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no hard links (exFAT, some of FUSE)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def _shown(stage: Stage, draft: Path) -> Iterator[None]:
    """Show how many files are done, once a second, while the workers work."""
    stop = threading.Event()
    with progress_lines("prepare", "files") as show:

        def watch() -> None:
            seen = 0
            while not stop.wait(1):
                done = stage.tasks - count_unfinished(stage, draft)
                if done > seen:
                    show(done, stage.tasks)
                    seen = done

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _say_what_went_in(manifest: dict[str, Any]) -> None:
    if "held_out" in manifest:
        number = manifest["held_out"]["documents"]
        note = "" if number else ": prepare.held_out_share is too small"
        say(f"{number} documents put aside in {HELD_OUT_ROWS}, for data.held_out{note}")
    for source in manifest["sources"]:
        rejected = "".join(f", {count} {reason}" for reason, count in source["rejected"].items())
        say(
            f"{source['path']}: {source['rows']} rows read, {source['kept']} kept, {source['bad_rows']} unreadable"
            f"{rejected}; {source['tokens']} tokens"
        )
