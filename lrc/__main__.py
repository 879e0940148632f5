"""Lets `python -m lrc` stand for the command `lrc`."""

import sys

from lrc.cli import main

if __name__ == "__main__":
    sys.exit(main())
