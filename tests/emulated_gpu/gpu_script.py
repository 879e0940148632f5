"""Run a script on the emulated GPU: `python gpu_script.py SCRIPT ARGUMENTS`."""

import runpy
import sys
from pathlib import Path

from tests.emulated_gpu.emulate import install

install()
sys.argv = sys.argv[1:]
sys.path[0] = str(Path(sys.argv[0]).parent)
runpy.run_path(sys.argv[0], run_name="__main__")
