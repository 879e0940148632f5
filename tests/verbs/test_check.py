"""`lrc check` runs the oracles on real weights or on a tiny model of the config, and fails where one does."""

from pathlib import Path
from typing import Any

import pytest

from lrc.cli import main
from lrc.errors import NumericsError
from lrc.models import oracles
from lrc.models.teacher import load_config
from lrc.verbs import check as module
from lrc.verbs.check import check
from tests.models.composite_configs import save_with_own_head
from tests.models.family_configs import FAMILY_CONFIGS
from tests.tiny import teacher_folder

NAMES = [
    "identity",
    "merged = factored",
    "gradient reaches all",
    "five steps lower the loss",
    "export and reload",
    "cache = no cache",
]


def test_real_weights_pass_every_oracle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = check(str(teacher_folder(tmp_path, "qwen3")), hidden_size=20)
    assert [result.name for result in results] == NAMES
    assert all(result.passed for result in results)
    assert capsys.readouterr().err.count("passed  ") == len(NAMES)


def test_a_tiny_check_needs_the_config_alone(tmp_path: Path) -> None:
    FAMILY_CONFIGS["granite"]().save_pretrained(tmp_path)
    assert main(["check", str(tmp_path), "--tiny"]) == 0


def test_a_hub_id_is_fetched_for_the_head_in_its_files_unless_the_check_is_tiny(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    checked: list[Any] = []
    save_with_own_head(tmp_path)
    monkeypatch.setattr(module, "load_config", lambda source, **options: load_config(str(tmp_path)))
    monkeypatch.setattr(module, "resolve_folder", lambda source: fetched.append(source) or tmp_path)
    monkeypatch.setattr(module, "run_oracles", lambda model, **options: checked.append(model) or [])
    check("owner/name")
    assert checked[0].config.tie_word_embeddings is False
    assert fetched == ["owner/name"]
    check("owner/name", tiny=True)
    assert fetched == ["owner/name"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--hidden-size", "0"], "--hidden-size must be at least 1, found 0"),
        (["--hidden-size", "33"], "must be at or below the teacher's 32, found 33"),
        (["--hidden-size", "33", "--tiny"], "--tiny checks a random model of hidden size 32, so"),
    ],
)
def test_a_width_that_no_student_can_have_is_an_error_of_the_width_not_of_the_teacher(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    said: str,
) -> None:
    FAMILY_CONFIGS["llama"]().save_pretrained(tmp_path)
    monkeypatch.setattr(module, "load_model", lambda *args, **options: pytest.fail("the weights are loaded"))
    assert main(["check", str(tmp_path), *flags]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "not supported" not in told


def test_a_failed_oracle_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(teacher: Any) -> tuple[bool, str]:
        return False, f"{teacher.config.model_type} is off"

    monkeypatch.setattr(oracles, "_identity", wrong)
    with pytest.raises(NumericsError, match="fails identity; it is not supported"):
        check(str(teacher_folder(tmp_path)), tiny=True)
    assert "FAILED  identity: llama is off" in capsys.readouterr().err
