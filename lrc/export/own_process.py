"""A module of this package run in a process of its own: foreign code that logs, changes paths or aborts stays there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import lrc

_TAIL_LINES = 12
_RAISED = re.compile(r"[\w.]*(Error|Exception|Exit)\b.*")
"""The last line of a traceback."""


def run_module(module: str, arguments: list[str], *, scratch: Path) -> str | None:
    """Run `python -m module` with `scratch` as its working folder.

    Args:
        module: Module of this package.
        arguments: Its arguments; paths must be absolute.
        scratch: Folder that may be written to; the output goes to a file in it.

    Returns:
        None if it succeeded, else the errors of its output, or its last lines.
    """
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(Path(lrc.__file__).resolve().parents[1]), *(os.path.abspath(path) for path in others if path)]
    log = scratch / f"{module.rsplit('.', 1)[-1]}.log"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=scratch,  # Python looks for modules in the working folder first
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if process.returncode == 0:
        return None
    return _reason(log.read_text(encoding="utf-8", errors="replace"), process.returncode)


def _reason(output: str, exit_code: int) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    told = [line.split(" E ", 1)[1].strip() for line in lines if " E " in line]  # llama.cpp's own, the cause first
    raised = [line for line in lines if _RAISED.match(line)]
    reason = [*told[:2], *raised[-1:]] or [line.strip() for line in lines[-_TAIL_LINES:]]
    return "; ".join(reason) or f"exit code {exit_code} and no output"
