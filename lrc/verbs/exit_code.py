"""How a command ends: its exit code, and the one line on standard error that goes with it."""

import os
import sys
import traceback
from collections.abc import Callable

from lrc.errors import LrcError
from lrc.verbs.quiet import quiet_imports

INTERRUPTED = 130
"""As a shell reports a program that ctrl-C has ended."""


def run_for_exit_code(command: Callable[[], object], *, prefix: str = "") -> int:
    """Run a command and return its exit code; notes of the packages that it imports are held back.

    `LRC_DEBUG=1` in the environment shows tracebacks of explained ends too.

    Args:
        command: What to run.
        prefix: Begins the line on standard error.

    Returns:
        0, the code of an `LrcError`, 130 for ctrl-C, or 1 where a GPU's memory was too small. Any other exception, a
        defect, is the caller's.
    """
    quiet_imports()
    try:
        command()
    except KeyboardInterrupt:
        print(f"{prefix}interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        line, code = _explain(error)
        if line is None:
            raise
        if os.environ.get("LRC_DEBUG"):
            traceback.print_exc()
        print(f"{prefix}error: {line}", file=sys.stderr)
        return code
    return 0


def run_or_exit(command: Callable[[], object]) -> None:
    """Run a script's command as `run_for_exit_code` does, and end the process where the exit code is not 0.

    Raises:
        SystemExit: With that code.
    """
    code = run_for_exit_code(command)
    if code:
        raise SystemExit(code)


def _explain(error: Exception) -> tuple[str | None, int]:
    """Return the line that explains an exception, or None, and the exit code."""
    if isinstance(error, LrcError):
        return str(error), error.exit_code
    # looked up, since a command that has not imported torch should not do so to end
    if isinstance(error, getattr(sys.modules.get("torch"), "OutOfMemoryError", ())):
        found = " ".join(str(error).partition(" GPU ")[0].split())
        return (
            f"the GPU's memory is too small: {found} Take a smaller batch_size with more gradient_accumulation_steps "
            "(training stays the same), activation_checkpointing, or a strategy that shares the work out "
            "(train.strategy=fsdp2); lrc plan counts what fits.",
            1,
        )
    return None, 1
