"""A finished student on the Hugging Face hub: what is uploaded, and the upload as one commit."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from lrc.errors import CheckpointError, ConfigError
from lrc.models.folder import has_weights
from lrc.report.records import Parity
from lrc.sft_config import SFT_FACTS

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*[A-Za-z0-9]", re.ASCII)
NOT_UPLOADED = {"results.json", "recipe.yaml", SFT_FACTS}
"""Files that a verb leaves beside a student; they name folders of this machine."""
WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")
"""Weights of an earlier push; transformers would load an old model.safetensors rather than new shards."""


def check_repo(repo: str) -> None:
    """Check the name of a repository.

    Raises:
        ConfigError: It is not OWNER/NAME.
    """
    if not REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ConfigError(
            f"--push-to-hub must be OWNER/NAME in letters, digits and single '-', '_', '.', found {repo!r}."
        )


def default_student(run: Path) -> Path:
    """Return the folder of the run's student: the fine-tuned one if there is one, else the converted one."""
    return run / "sft" if (run / "sft" / "config.json").is_file() else run / "convert"


def student_folder(run: Path, student: Path | None, *, parity: Parity | None) -> Path:
    """Return the student to upload: the one named, else the fine-tuned one, else the converted one.

    Raises:
        CheckpointError: It is not there, holds no model, or failed its parity check.
    """
    folder = student or default_student(run)
    if not (folder / "config.json").is_file() or not has_weights(folder):
        raise CheckpointError(
            f"{folder} must be a model folder with config.json and safetensors weights, but is none. Run lrc convert, "
            "or name the folder with --student."
        )
    if folder == run / "convert" and parity is not None and not parity.passed:
        raise CheckpointError(
            f"{folder} failed its parity check, so it is not the model that was trained. Convert anew."
        )
    return folder


def list_uploads(student: Path, card_files: dict[str, bytes]) -> dict[str, Path | bytes]:
    """List what is uploaded: path in the repository -> file or content, sorted.

    Args:
        student: The model folder; hidden files and NOT_UPLOADED stay here, its own README.md gives way to the card.
        card_files: The card and its pictures.
    """
    own: dict[str, Path | bytes] = {
        path.relative_to(student).as_posix(): path
        for path in student.rglob("*")
        if path.is_file() and path.name not in NOT_UPLOADED and not _is_hidden(path.relative_to(student))
    }
    return dict(sorted({**own, **card_files}.items()))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def push(repo: str, uploads: dict[str, Path | bytes], *, private: bool) -> str:
    """Upload in one commit and return its address; the repository is made if it is not there.

    Weights in it that are not among the uploads go with the same commit; everything else stays.

    Raises:
        ConfigError: `private` is asked for, but the repository is there and public.
        CheckpointError: The hub refused or was not reached.
    """
    api = HfApi()
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=what) for name, what in uploads.items()]
    try:
        if private and api.repo_exists(repo) and not api.repo_info(repo).private:
            raise ConfigError(
                f"--private must name a new or a private repository, but {repo} is public. Make it private on the hub, "
                "name another one, or leave --private out; nothing was uploaded."
            )
        api.create_repo(repo, private=private or None, exist_ok=True)
        stale = [
            CommitOperationDelete(path_in_repo=name)
            for name in api.list_repo_files(repo)
            if name not in uploads and "/" not in name and any(fnmatchcase(name, pattern) for pattern in WEIGHTS)
        ]
        commit = api.create_commit(repo, [*added, *stale], commit_message="Upload a Low-Rank Clone student")
    except ConfigError:
        raise
    except Exception as error:  # hub, HTTP and file errors have no common base
        raise CheckpointError(
            f"{repo} could not be written: {' '.join(str(error).split())} Log in (hf auth login) or check the name "
            "and your rights there. A commit arrives whole or not at all."
        ) from error
    return str(commit.commit_url)
