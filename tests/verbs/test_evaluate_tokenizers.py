"""`lrc evaluate --teacher` on text: both models must mean the same tokens by the ids that both read."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lrc.config import EvaluateConfig
from lrc.errors import ConfigError
from lrc.verbs import evaluate as module
from lrc.verbs.evaluate import evaluate
from lrc.verbs.task_settings import TaskSettings
from tests.evaluation.made_up_tasks import byte_model_folder, write_tasks_data

SETTINGS = EvaluateConfig(tokens=32, sequence_length=16)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A student, its teacher and a text; no model is loaded."""
    monkeypatch.setattr(module, "load_model", lambda *args, **options: pytest.fail("a model is loaded"))
    byte_model_folder(tmp_path / "teacher")
    byte_model_folder(tmp_path / "student", seed=3, hidden_size=16)
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "the old bridge sings at night"}) + "\n")
    return tmp_path


def compared(root: Path, **options: Any) -> None:
    chosen: dict[str, Any] = {"held_out": str(root / "text.jsonl"), "settings": SETTINGS, "dry_run": True, **options}
    evaluate(root / "student", out=root / "out", teacher=str(root / "teacher"), **chosen)


def change(folder: Path, edit: Any) -> None:
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))


def swap(found: dict[str, Any]) -> None:
    words = found["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]


def test_the_same_tokenizer_passes(root: Path) -> None:
    compared(root)


def test_a_teacher_of_another_tokenizer_is_refused(root: Path) -> None:
    change(root / "teacher", swap)
    with pytest.raises(
        ConfigError, match=r"must share a tokenizer .* 2 of their token ids .* is 'b' and 'a'"
    ) as caught:
        compared(root)
    assert str(root / "teacher") in str(caught.value)


def test_tasks_alone_may_be_scored_with_two_tokenizers(root: Path) -> None:
    change(root / "teacher", swap)
    data = write_tasks_data(root / "data", rows=2)
    compared(root, held_out=None, tasks=TaskSettings(tasks="piqa", data_dir=str(data)))


def test_a_student_whose_special_tokens_or_settings_changed_passes(root: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(root / "student")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    tokenizer.save_pretrained(root / "student")
    change(root / "student", lambda found: found["pre_tokenizer"].update(trim_offsets=False))
    compared(root)
    name = {"<s>": "<|begin|>"}

    def rename(found: dict[str, Any]) -> None:
        found["model"]["vocab"] = {name.get(word, word): index for word, index in found["model"]["vocab"].items()}
        for token in found["added_tokens"]:
            token["content"] = name.get(token["content"], token["content"])

    change(root / "teacher", rename)
    compared(root)
