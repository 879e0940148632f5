"""The quality arena: what each method makes of the same teacher, width, tokens and data order.

    python benchmarks/quality.py --list                                   # cells, methods, sweeps
    python benchmarks/quality.py smollm2/half/default/250k/seed0          # one cell; a finished one is kept
    python benchmarks/quality.py rates published red default              # pick learning rates on the development text
    python benchmarks/quality.py sweep temperature                        # one question about the default, short cells
    python benchmarks/quality.py --table --plot                           # all finished cells
    python benchmarks/quality.py --quick                                  # every method on a tiny teacher, in minutes

docs/quality.md says what is measured and how to read the columns. Runs, results and plots lie under runs/quality/.
"""

import sys

from arena.command import run_command

if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:], help_text=__doc__))
