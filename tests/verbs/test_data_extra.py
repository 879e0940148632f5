"""A core installation without the extra `data` says what to install, and imports nothing before that."""

import subprocess
import sys

import pytest

from lrc.errors import ConfigError
from lrc.verbs import data_extra
from lrc.verbs.data_extra import require_data_extra


def test_all_is_there_in_the_development_environment() -> None:
    require_data_extra()


def test_what_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_extra, "MODULES", ("json", "no_such_engine"))
    with pytest.raises(ConfigError, match=r"needs no_such_engine\. Install it with: pip install 'lrc\[data\]'"):
        require_data_extra()


@pytest.mark.parametrize("verb", [["lrc.cli", "prepare", "x.yaml"], ["lrc.verbs.published_prepare", "--version", "x"]])
def test_the_commands_ask_before_they_import(verb: list[str]) -> None:
    module, *arguments = verb
    code = "\n".join(
        (
            "import importlib, sys, lrc.verbs.data_extra",
            "lrc.verbs.data_extra.MODULES = ('no_such_engine',)",
            "sys.modules['orjson'] = sys.modules['datatrove'] = None",
            f"sys.exit(importlib.import_module({module!r}).main({arguments!r}))",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "pip install 'lrc[data]'" in done.stderr
