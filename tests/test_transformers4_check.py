"""`scripts/transformers4_check.sh`: what is exported here has the same logits in transformers 4.57.6."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VENV = Path(os.environ.get("LRC_TRANSFORMERS4_VENV", Path.home() / ".cache/lrc/transformers4"))


@pytest.mark.slow
def test_transformers_4_computes_what_the_transformers_here_do() -> None:
    if not (VENV / ".ready").exists():
        pytest.skip(f"NOT tested: no transformers 4.57.6 in {VENV}; scripts/transformers4_check.sh makes it")
    process = subprocess.run(
        ["scripts/transformers4_check.sh"],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "LRC_TRANSFORMERS4_VENV": str(VENV)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    told = re.search(r"transformers 4\.57\.6: 43 students, largest difference ([\d.e-]+); wrong: \[\]", process.stdout)
    assert told is not None, process.stdout
    assert float(told[1]) <= 1e-5
    (control,) = [line for line in process.stdout.splitlines() if line.startswith("control")]
    assert control.endswith("DIFFERENT")
