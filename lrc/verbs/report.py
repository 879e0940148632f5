"""The verb `lrc report`: from the JSON that the other verbs left in a run folder to a page, plots and a model card."""

import fcntl
import os
import shlex
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from lrc.embedded.teacher import TEACHER_HUB_ID, TEACHER_LICENSE
from lrc.errors import CheckpointError, ConfigError, DataError
from lrc.evaluation.task_names import CODE
from lrc.models.folder import has_weights, weights_hash
from lrc.report.json_fields import read_json
from lrc.report.licence import Licence, read_licence
from lrc.report.model_card import Origin, model_card
from lrc.report.page import page_html
from lrc.report.plots import draw_plots
from lrc.report.read_run import RESULTS_FILE, read_fine_tuned, read_run
from lrc.report.records import RunData
from lrc.sft_config import SFT_FACTS
from lrc.verbs.progress import say
from lrc.verbs.push import REPO, check_repo, default_student, list_uploads, push, student_folder
from lrc.verbs.sources import EMBEDDED

PAGE_NAME = "report.html"
CARD_NAME = "README.md"


def report(
    run: Path,
    *,
    push_to_hub: str | None = None,
    student: Path | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> Path:
    """Build RUN/report: `report.html`, one PNG a plot, and the model card; an older report is replaced as a whole.

    Args:
        run: The run folder, with train/metrics.jsonl or evaluate/results.json at least.
        push_to_hub: OWNER/NAME of the hub repository that the student is uploaded to with its card; None: no upload.
        student: Folder that the card is of, to upload; None: RUN/sft, or RUN/convert if there is none.
        private: Make a new repository private; refuse one that is public.
        dry_run: List what would be written and uploaded; write nothing, connect to nothing.

    Returns:
        The page, RUN/report/report.html.

    Raises:
        DataError: There is nothing to report yet, a file of the run is damaged, or the folder can't be written.
        ConfigError: The run's recipe is not a valid one, or the repository's name, or it is public against `private`,
            or `private` is asked for without one.
        CheckpointError: There is no student where one is named or to upload, its weights are damaged, or the upload
            failed.
    """
    folder = run / "report"
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} must be a folder or not be there, but is a file. Move it away.")
    _check_own(folder)
    data = read_run(run)
    student = _named_student(run, data, student, push_to_hub, private=private)
    subject = student or default_student(run)
    sft_facts = subject / SFT_FACTS
    data = replace(data, fine_tuned=read_fine_tuned(sft_facts) if sft_facts.is_file() else None)
    origin = _origin(run, data, push_to_hub, subject)
    if origin.scored_other is not None:
        _note_scores(data, subject, origin.scored_other)
    plots = draw_plots(data)
    files = {f"{name}.png": plot.light_png for name, plot in plots.items()}
    files[CARD_NAME] = model_card(data, plots, origin).encode("utf-8")
    uploads = {} if student is None else list_uploads(student, files)
    files[PAGE_NAME] = page_html(data, plots, origin).encode("utf-8")
    if dry_run:
        say(f"dry run: {folder} would get {', '.join(sorted(files))}")
        if push_to_hub is not None:
            print("\n".join(f"{size:>14,} bytes  {name}" for name, size in _sizes(uploads).items()))
            say(f"dry run: {len(uploads)} files would be uploaded to {push_to_hub}; nothing was")
        return folder / PAGE_NAME
    try:
        _replace_folder(folder.resolve(), files)
    except OSError as error:
        raise DataError(
            f"The report must be written to {folder}, but: {error.strerror}. Free space or fix the rights there; "
            "what stood there is unchanged."
        ) from error
    if push_to_hub is not None:
        say(f"Uploaded: {push(push_to_hub, uploads, private=private)}")
    return folder / PAGE_NAME


def _check_own(folder: Path) -> None:
    """Check that a report holds nothing but what reports are made of: it is replaced as a whole.

    Raises:
        DataError: It does.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strange = [name for name in names if name not in (PAGE_NAME, CARD_NAME) and not name.endswith(".png")]
    if strange:
        raise DataError(f"{folder} is replaced as a whole, but holds {strange[0]}, which is no report's. Move it away.")


def _named_student(
    run: Path, data: RunData, student: Path | None, push_to_hub: str | None, *, private: bool
) -> Path | None:
    """Return the student that the card is to be of, checked, and the default one if it is uploaded; None: not named."""
    if push_to_hub is not None:
        check_repo(push_to_hub)
        return student_folder(run, student, parity=data.parity)
    if private:
        raise ConfigError(
            "--private says how --push-to-hub makes a repository, but that names none. Name one or leave --private out."
        )
    if student is not None and not (student / "config.json").is_file():
        raise CheckpointError(f"--student must name a model folder, but {student} holds no config.json.")
    return student


def _note_scores(data: RunData, student: Path, scored: str) -> None:
    whose = f"{scored}, not of {student}"
    if _is_same_place(scored, student):
        whose = f"other weights that were in {student}, not of those there now"
    say(
        f"note: {data.run / RESULTS_FILE} has the scores of {whose}: the card says so and gives the hub none. "
        f"Score it: {_score_command(data, student)}"
    )


def _score_command(data: RunData, student: Path) -> str:
    """Word the command that scores a student on what the run's results were measured on."""
    words = ["lrc", "evaluate", str(student), "--out", str(data.run / "evaluate")]
    teacher: str | None = None
    if data.results is not None:
        words += ["--held-out", data.results.source]
        teacher = None if data.results.teacher is None else data.results.teacher.name
    if data.tasks is not None:
        names = [row.task for row in data.tasks.scores]
        words += ["--tasks", ",".join(names)]
        words += [] if data.tasks.data == "hub" else ["--data-dir", data.tasks.data]
        words += [] if data.tasks.limit is None else ["--limit", str(data.tasks.limit)]
        words += ["--allow-code"] if set(names) & set(CODE) else []
        teacher = teacher or data.tasks.teacher
    words += ["--teacher", teacher] if teacher else []
    return shlex.join([*words, "--overwrite"])


def _sizes(uploads: dict[str, Path | bytes]) -> dict[str, int]:
    return {name: len(what) if isinstance(what, bytes) else what.stat().st_size for name, what in uploads.items()}


def _origin(run: Path, data: RunData, repo: str | None, student: Path) -> Origin:
    """Find the teacher's name and licence on this machine, and what is known of the student; nothing is fetched."""
    name = None if data.recipe is None else data.recipe.teacher
    teacher_id, licence = name, read_licence(None)
    if name is None:
        teacher_id = None
    elif name.startswith(EMBEDDED):
        teacher_id, licence = TEACHER_HUB_ID, Licence(id=TEACHER_LICENSE)
    elif Path(name).is_dir():
        teacher_id, licence = None, read_licence(Path(name))
    elif (folder := _cached_folder(name)) is not None:
        licence = read_licence(folder)
    else:
        teacher_id = None  # a folder that is not there, which a relative path of two parts does not tell from a hub id
    config = _student_config(student)
    tuned = config and (student.resolve() == (run / "sft").resolve() or (student / SFT_FACTS).is_file())
    return Origin(
        teacher_id=teacher_id,
        licence=licence,
        repo=repo,
        after_training="fine-tuned on chats with `lrc sft`" if tuned else None,
        scored_other=_scored_other(data, student) if config else None,
        model_type=config.get("model_type"),
        quantised_by=(config.get("quantization_config") or {}).get("quant_method"),
    )


def _student_config(student: Path) -> dict[str, Any]:
    """Return the content of the student's config.json; empty where there is no student yet."""
    path = student / "config.json"
    return read_json(path).values if path.is_file() else {}


def _scored_other(data: RunData, student: Path) -> str | None:
    """Return the model that the scores are of, if it is not the student.

    Weights are compared where the results name theirs, else folders.
    """
    scored = data.results.student.name if data.results else data.tasks.student if data.tasks else None
    if scored is None:
        return None
    if data.student_hash is None or not has_weights(student):
        return None if _is_same_place(scored, student) else scored
    return None if weights_hash(student) == data.student_hash else scored


def _is_same_place(scored: str, student: Path) -> bool:
    return Path(scored).resolve() == student.resolve()


def _cached_folder(name: str) -> Path | None:
    """Return where the hub's cache keeps a model, as training left it there; None: nowhere, or no hub id."""
    if not REPO.fullmatch(name):
        return None
    cached = [try_to_load_from_cache(name, file) for file in ("README.md", "LICENSE", "LICENSE.txt", "config.json")]
    return next((Path(path).parent for path in cached if isinstance(path, str)), None)


def _replace_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files into a sibling folder, then put it in the place of `folder`."""
    token = uuid.uuid4().hex[:8]
    new, old = folder.with_name(f".{folder.name}-{token}.new"), folder.with_name(f".{folder.name}-{token}.old")
    try:
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
        with _only_swap(folder.parent):
            _swap(folder, new=new, old=old)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def _only_swap(parent: Path) -> Iterator[None]:
    """Wait until no other report swaps a folder in `parent`, and keep others out while the context is open."""
    place = os.open(parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # on a file system without locks nothing is kept out
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def _swap(folder: Path, *, new: Path, old: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    # A folder that holds files can't be renamed over, so the old one steps aside first and comes back on failure.
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
