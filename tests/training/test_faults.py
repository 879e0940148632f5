"""A short fault drill: whatever hits a run, resume finishes it as if nothing had been (`benchmarks/faults.py`)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_few_rounds_with_every_kind_of_fault_lose_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as a user calls it: lrc is installed, benchmarks are not
    command = [
        sys.executable,
        "benchmarks/faults.py",
        "--rounds",
        "5",
        "--seed",
        "5",
        "--out",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"^rounds 5, faults \d+, lost steps \d+, failures 0", done.stdout, re.MULTILINE)
    facts = json.loads((tmp_path / "out.json").read_text())
    assert (facts["rounds"], facts["failures"]) == (5, [])
    times = dict(re.findall(r"^\| ([\w -]+) \| (\d+) \|", done.stdout, re.MULTILINE))
    assert len(times) == 8
    assert "0" not in times.values()
    assert facts["lost_steps"].get("SIGTERM", 0) == 0
