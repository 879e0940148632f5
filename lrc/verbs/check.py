"""Check: run the oracles on a teacher, with its real weights or on a tiny random model of its config."""

from typing import Any

import torch

from lrc.errors import ConfigError, NumericsError
from lrc.models.discovery import discover
from lrc.models.folder import resolve_folder
from lrc.models.oracles import Oracle, run_oracles
from lrc.models.student import student_config
from lrc.models.teacher import load_config, load_model
from lrc.models.tiny import random_model, tiny_config
from lrc.verbs.progress import say
from lrc.verbs.sources import locate_teacher


def check(
    teacher: str, *, tiny: bool = False, hidden_size: int | None = None, trust_remote_code: bool = False
) -> list[Oracle]:
    """Run every oracle and say what each found.

    Args:
        teacher: Folder or hub id.
        tiny: Only read the config, and use a small random model of it.
        hidden_size: Width of the narrow student, of the tiny model's if that is checked; None: about half.
        trust_remote_code: Run code that comes with the teacher.

    Raises:
        ConfigError: The architecture can't be cloned, or has no student of that width; the text is the reason.
        CheckpointError: The weights can't be fetched or read.
        NumericsError: An oracle failed.
    """
    source = locate_teacher(teacher)
    config = load_config(source, trust_remote_code=trust_remote_code)
    discover(config)
    checked = tiny_config(config) if tiny else config
    if hidden_size is not None:
        _check_width(hidden_size, checked, tiny=tiny)
    if tiny:
        model = random_model(checked)
    else:
        folder = str(resolve_folder(source))  # whose files tell whether a composite's head is its own
        model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"), trust_remote_code=trust_remote_code)
    results = run_oracles(model, hidden_size=hidden_size, report=_say_outcome)
    failed = [result.name for result in results if not result.passed]
    if failed:
        raise NumericsError(f"{teacher} fails {', '.join(failed)}; it is not supported.")
    return results


def _check_width(hidden_size: int, config: Any, *, tiny: bool) -> None:
    """Check that a student of that width can be made of the model that is checked.

    Raises:
        ConfigError: It can't; nothing is wrong with the teacher.
    """
    if hidden_size < 1:
        raise ConfigError(f"--hidden-size must be at least 1, found {hidden_size}. Leave it out for about half.")
    if tiny and hidden_size > config.hidden_size:
        raise ConfigError(
            f"--tiny checks a random model of hidden size {config.hidden_size}, so --hidden-size must be at most that, "
            f"found {hidden_size}. Leave it out for about half, or leave out --tiny to check the real weights."
        )
    student_config(config, hidden_size, tied=False)


def _say_outcome(result: Oracle) -> None:
    say(f"{'passed' if result.passed else 'FAILED'}  {result.name}: {result.found}")
