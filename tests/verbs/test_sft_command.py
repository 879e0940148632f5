"""`lrc sft` without its extra says what to install, and imports nothing before that."""

import subprocess
import sys
from pathlib import Path

import pytest

from lrc.errors import ConfigError
from lrc.verbs import sft_command
from lrc.verbs.sft_command import require_sft_extra


@pytest.mark.parametrize("lora", [True, False])
def test_all_is_there_in_the_development_environment(lora: bool) -> None:
    require_sft_extra(lora=lora)


def test_what_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_command, "MODULES", ("json", "no_such_trainer"))
    with pytest.raises(ConfigError, match=r"needs no_such_trainer\. Install it with: pip install 'lrc\[sft\]'"):
        require_sft_extra(lora=False)


def test_peft_is_needed_for_lora_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_command, "find_spec", lambda name: None if name == "peft" else name)
    require_sft_extra(lora=False)
    with pytest.raises(ConfigError, match="needs peft"):
        require_sft_extra(lora=True)


def test_the_command_asks_before_it_imports(recipe_file: Path) -> None:
    code = "\n".join(
        (
            "import sys, lrc.cli, lrc.verbs.sft_command",
            "lrc.verbs.sft_command.MODULES = ('no_such_trainer',)",
            "sys.modules['trl'] = sys.modules['orjson'] = None",
            f"sys.exit(lrc.cli.main(['sft', {str(recipe_file)!r}]))",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "pip install 'lrc[sft]'" in done.stderr
