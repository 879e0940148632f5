"""A Slurm of three shell scripts: `sbatch` runs each task of an array at once, in order, and notes its calls."""

import os
from pathlib import Path

import pytest

SBATCH = """#!/bin/bash
args="$*"; for script; do :; done
offset=0
[[ "$args" =~ RUN_OFFSET=([0-9]+) ]] && offset=${BASH_REMATCH[1]}
echo "sbatch ${args% *} $(grep '^#SBATCH' "$script" | tr '\\n' ' ')" >> "$FAKE_SLURM/calls"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for task in $(seq 0 "${last:-0}"); do
    [ -n "$FAKE_SLURM_WAITS" ] && break
    SLURM_ARRAY_TASK_ID=$task RUN_OFFSET=$offset SLURM_NODELIST=here SLURM_JOB_ID=7 \\
        bash "$script" >> "$FAKE_SLURM/output" 2>&1
done
count=$(cat "$FAKE_SLURM/calls" | wc -l)
echo "Submitted batch job $((100 + count))"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do [ "$1" = "-n" ] && shift; shift; done
exec "$@"
"""
SCONTROL = "#!/bin/bash\necho here\n"


def install_fake_slurm(root: Path, monkeypatch: pytest.MonkeyPatch, *, waits: bool = False) -> Path:
    """Put the scripts on the PATH of this process and return where they write; a waiting one runs nothing."""
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        path = root / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(root))
    monkeypatch.setenv("FAKE_SLURM_WAITS", "1" if waits else "")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return root
