"""The published data command; `lrc/verbs/published_prepare.py` says what its flags mean."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, Python looks beside this file only

from lrc.verbs.published_prepare import main

if __name__ == "__main__":
    sys.exit(main())
