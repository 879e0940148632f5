"""What tests of optional parts skip without is there, so that the whole suite tests them."""

from importlib.util import find_spec

import pytest


@pytest.mark.parametrize("package", ["deepspeed", "gguf", "tensorboard", "torchao", "xllamacpp"])
def test_the_development_environment_has_the_optional_packages(package: str) -> None:
    assert find_spec(package) is not None, (
        f"{package} must be installed: tests that need it skip without a word. Run make test, which sets up .venv, or "
        "install lrc[dev]."
    )
