"""`lrc sft --resume auto`: what the next sitting must share with the one before, and what it takes over from it."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.utils import chat_template_utils

from lrc.cli import main
from lrc.config import load_recipe
from lrc.training.run_folder import only_run
from lrc.verbs import sft as module
from tests.sft.killed_run import killed_after
from tests.sft.tiny_chats import CHATML, sft_root, snapshot

DATED = "{{ 'Today is ' + strftime_now('%d %b %Y') }}" + CHATML


def kill(root: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> dict[str, Any]:
    """Run until the fifth step, a checkpoint behind, and return what the run was begun with."""
    with killed_after(5, monkeypatch):
        module.sft(load_recipe(root / "recipe.yaml", overrides))
    found: dict[str, Any] = json.loads((root / "run" / ".sft" / "run.json").read_text())
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return sft_root(tmp_path)


def set_clock(patch: pytest.MonkeyPatch, now: datetime) -> None:
    """Let the verb and the templates read this time."""
    clock = SimpleNamespace(now=lambda: now, fromisoformat=datetime.fromisoformat)
    patch.setattr(module, "datetime", clock)
    patch.setattr(chat_template_utils, "datetime", clock)


def test_another_number_of_processes_is_refused_before_the_chats_are_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kill(root, monkeypatch)["processes"] == 1
    before = snapshot(root)
    with monkeypatch.context() as patch:
        two = SimpleNamespace(num_processes=2, is_main_process=True, wait_for_everyone=lambda: None)
        patch.setattr(module, "_processes", lambda device: two)
        patch.setattr(module, "_write_chats", lambda *args: pytest.fail("the chats are read"))
        assert main(["sft", str(root / "recipe.yaml"), "--resume", "auto"]) == 2
    said = capsys.readouterr().err
    assert "it was begun with, 1," in said
    assert "now there are 2. Launch it with 1, or start anew with --overwrite" in said
    assert snapshot(root) == before


def test_a_run_that_was_to_replace_a_result_goes_on_beside_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = module.sft(load_recipe(root / "recipe.yaml", ("sft.max_steps=1",)))
    with killed_after(5, monkeypatch):
        module.sft(load_recipe(root / "recipe.yaml", ()), overwrite=True)
    assert json.loads((out / "sft.json").read_text())["steps"] == 1
    assert main(["sft", str(root / "recipe.yaml"), "--resume", "auto"]) == 0
    assert json.loads((out / "sft.json").read_text())["steps"] > 5
    assert main(["sft", str(root / "recipe.yaml"), "--resume", "auto"]) == 2  # nothing to go on with, and no leave
    assert "Use --overwrite" in capsys.readouterr().err


def test_a_second_run_is_kept_out_before_it_reads_the_chats(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_run(root / "run" / "sft") as hold:
        hold()
        before = snapshot(root)
        monkeypatch.setattr(module, "_write_chats", lambda *args: pytest.fail("the chats are read"))
        assert main(["sft", str(root / "recipe.yaml")]) == 2
    assert "Another run writes to" in capsys.readouterr().err
    assert snapshot(root) == before


def test_a_run_that_an_older_version_began_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = kill(root, monkeypatch)
    older = {name: stored[name] for name in ("settings", "student", "teacher", "chats")}
    (root / "run" / ".sft" / "run.json").write_text(json.dumps(older))
    assert main(["sft", str(root / "recipe.yaml"), "--resume", "auto"]) == 0


def test_a_run_whose_template_tells_the_date_goes_on_the_next_day(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "student" / "chat_template.jinja").write_text(DATED)
    begun = datetime(2024, 7, 1, 23, 50)
    set_clock(monkeypatch, begun)
    whole = module.sft(load_recipe(root / "recipe.yaml", (f"run={root / 'whole'}",)))
    assert kill(root, monkeypatch)["begun"] == begun.isoformat()
    set_clock(monkeypatch, begun + timedelta(hours=1))
    resumed = module.sft(load_recipe(root / "recipe.yaml", ()), resume="auto")
    one, other = ((folder / "model.safetensors").read_bytes() for folder in (whole, resumed))
    assert one == other
    held_out = [json.loads((folder / "sft.json").read_text())["held_out"] for folder in (whole, resumed)]
    assert held_out[0] == held_out[1]


def test_the_dtype_that_was_chosen_by_measurement_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(module, "choose_dtype", lambda wanted, device: chosen.append(wanted))
    cpu = torch.device("cpu")
    for wanted, stored in (("auto", {}), ("auto", {"dtype": "float32"}), ("bfloat16", {"dtype": "float32"})):
        module._dtype(wanted, stored, cpu)
    assert chosen == ["auto", "float32", "bfloat16"]
    monkeypatch.undo()
    assert kill(root, monkeypatch)["dtype"] == "float32"
