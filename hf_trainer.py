"""The published training command; `lrc/verbs/published_train.py` says what its flags mean."""

import sys

from lrc.verbs.published_train import main

if __name__ == "__main__":
    sys.exit(main())
