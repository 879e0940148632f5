"""The published conversion command; `lrc/verbs/published_convert.py` says what its flags mean."""

import sys

from lrc.verbs.published_convert import main

if __name__ == "__main__":
    sys.exit(main())
