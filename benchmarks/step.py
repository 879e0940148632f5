"""What a step costs: speed and memory of the package's step, of the published one written plainly, and of the floor.

    python benchmarks/step.py                                    # the demo's shape
    python benchmarks/step.py --shapes demo,gqa3b,qwen7b --accumulation 1,2,4,8
    python benchmarks/step.py --shapes demo --sweep tokens,layers,vocabulary,width
    python benchmarks/step.py --shapes demo --profile            # time by part, and a trace to look at
    python benchmarks/step.py --shapes tiny --dtype float32      # seconds: does it run?

The floor is a stock teacher's forward plus a stock student's forward and backward with the plain LM loss, timed apart
and summed; the student's optimiser is not counted in it. docs/performance.md says what each column means. Prints a
table a shape and writes JSON.
"""

import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # beside an installed lrc, `benchmarks` is not on it
    from benchmarks.speed.command import main as measure

    measure(__doc__)


if __name__ == "__main__":
    main()
