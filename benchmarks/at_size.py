"""Convert and the calibrated start at the widths of a 7B teacher, with as many layers as the machine has time for.

    python benchmarks/at_size.py                         # 2 layers of Qwen2.5-7B's widths, random weights
    python benchmarks/at_size.py --layers 28 --tasks convert

The teacher is written once, sharded, and each task runs in a process of its own: `convert` (the merge), `verb` (`lrc
convert` with its parity check), `start` (the calibrated start against plain forwards over the same tokens).
docs/performance.md says what is measured. Prints a table and writes JSON.
"""

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # beside an installed lrc, `benchmarks` is not on it
    from benchmarks.speed.at_size import Job, job_table, prepare, run_job
    from lrc.export.convert import DTYPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen7b", help="as in benchmarks/step.py")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tasks", default="convert,start", help="comma list of convert, verb, start")
    parser.add_argument("--tokens", type=int, default=8192, help="calibration tokens")
    parser.add_argument("--length", type=int, default=512, help="positions of a calibration row")
    parser.add_argument("--rounds", type=int, default=3, help="times of the start are medians over them")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the start's models"
    )
    parser.add_argument("--stored", choices=sorted(DTYPES), default="bfloat16", help="dtype of the teacher's files")
    parser.add_argument("--max-shard-bytes", type=int, default=2_000_000_000, help="as convert.max_shard_bytes")
    parser.add_argument("--folder", type=Path, default=Path("runs/at_size"), help="teacher and checkpoint stay here")
    parser.add_argument("--out", type=Path, default=Path("runs/at_size/at_size.json"))
    arguments = parser.parse_args()
    found = {}
    for task in arguments.tasks.split(","):
        names = ("shape", "layers", "tokens", "length", "rounds", "dtype", "max_shard_bytes")
        job = Job(task=task, folder=str(arguments.folder), **{name: getattr(arguments, name) for name in names})
        prepare(job, DTYPES[arguments.stored])
        found[task] = run_job(job)
    print(f"{arguments.shape}, {arguments.layers} layers\n\n{job_table(found)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
