"""Check: run the oracles on a teacher, with its real weights or on a tiny random model of its config."""

import torch

from lrc.errors import NumericsError
from lrc.models.discovery import discover
from lrc.models.oracles import Oracle, run_oracles
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
        hidden_size: Width of the narrow student; None: about half.
        trust_remote_code: Run code that comes with the teacher.

    Raises:
        ConfigError: The architecture can't be cloned; the text is the reason.
        NumericsError: An oracle failed.
    """
    source = locate_teacher(teacher)
    config = load_config(source, trust_remote_code=trust_remote_code)
    discover(config)
    if tiny:
        model = random_model(tiny_config(config))
    else:
        model = load_model(source, dtype=torch.float32, device=torch.device("cpu"), trust_remote_code=trust_remote_code)
    results = run_oracles(model, hidden_size=hidden_size)
    for result in results:
        say(f"{'passed' if result.passed else 'FAILED'}  {result.name}: {result.found}")
    failed = [result.name for result in results if not result.passed]
    if failed:
        raise NumericsError(f"{teacher} fails {', '.join(failed)}; it is not supported.")
    return results
