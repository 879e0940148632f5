"""What the width costs at the head alone: the teacher's last states, brought to `d_S` numbers, and a student's head.

    python benchmarks/head_floor.py smollm2/half                     # the demo's text
    python benchmarks/head_floor.py smollm2/half --data DIR          # the arena's corpora (docs/quality.md)

A student's logits are `H z`: `H`, `[V, d_S]`, its head, `z` the states that its layers bring there. Of LRC's students
`H = E B` with the teacher's head `E`, `[V, d_T]`, and a projection `B`. Each line of the table is KL(teacher ||
student) at temperature 1 where no layer errs:

- closed form: `z = A.T h`, `h` the teacher's states; `A` and `B` give the logits of least squared error;
- trained: `A` and `B` trained on that KL, on the training text;
- best states: the same `B`, and at each position the `z` of least KL (which is convex in `z`). No layers do better with
  that head. A student's last norm binds one of the `d_S` numbers; here all are free;
- free head: `H` trained itself, from `E B`, with `A`; and its best states.

Prints the table and writes JSON to `--out`.
"""

import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # beside an installed lrc, `benchmarks` is not on it
    from benchmarks.arena.head_floor import main as measure

    measure(__doc__)


if __name__ == "__main__":
    main()
