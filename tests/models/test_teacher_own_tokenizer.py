"""A tokenizer whose class comes with the teacher is used where the recipe allows it, and nobody is asked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lrc.config import Recipe
from lrc.data.encoder import FACTS, open_encoder, save_encoder
from lrc.errors import CheckpointError
from lrc.models.teacher import load_tokenizer
from lrc.verbs import train as train_module
from lrc.verbs.prepare import prepare
from lrc.verbs.train import train
from tests.data.raw_sources import prepare_recipe, write_source
from tests.models.own_code import OWN_CONFIG, OWN_MODEL

OWN_TOKENIZER = """
from transformers import PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    def apply_chat_template(self, *arguments, **options):
        return "own " + super().apply_chat_template(*arguments, **options)
"""
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A recipe whose teacher has a config, a model and a tokenizer of its own code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody is asked"))
    source = {"path": str(write_source(tmp_path / "chats.jsonl", [{"messages": CHAT}] * 40)), "kind": "chat"}
    recipe = prepare_recipe(tmp_path, source)
    teacher = Path(recipe.teacher)
    (teacher / "configuration_own.py").write_text(OWN_CONFIG)
    (teacher / "modeling_own.py").write_text(OWN_MODEL)
    (teacher / "tokenization_own.py").write_text(OWN_TOKENIZER)
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    change(teacher / "config.json", model_type="own_of_the_test", auto_map=auto_map)
    own_class = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
    change(teacher / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own_class)
    return replace(recipe, trust_remote_code=True)


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_its_code_runs_only_where_that_is_allowed(recipe: Recipe) -> None:
    folder = Path(recipe.teacher)
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        load_tokenizer(folder)
    assert type(load_tokenizer(folder, trust_remote_code=True)).__name__ == "OwnTokenizer"


def test_workers_know_that_it_may_run(recipe: Recipe, tmp_path: Path) -> None:
    folder = Path(recipe.teacher)
    save_encoder(load_tokenizer(folder, trust_remote_code=True), folder, tmp_path, trust_remote_code=True)
    assert json.loads((tmp_path / FACTS).read_text())["trust_remote_code"] is True
    assert open_encoder(tmp_path).chat_text(CHAT) == "own <user>Hi"


def test_workers_run_it_only_where_that_is_allowed(recipe: Recipe, tmp_path: Path) -> None:
    folder = Path(recipe.teacher)
    save_encoder(load_tokenizer(folder, trust_remote_code=True), folder, tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        open_encoder(tmp_path).chat_text(CHAT)


def test_prepare_and_train_hand_the_recipes_leave_on(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare(recipe)
    assert "own <user>Hi" in (folder / "preview.txt").read_text()
    monkeypatch.setattr(train_module, "require_family", lambda config: None)  # the class is Llama's
    data = replace(recipe.data, train=str(folder), held_out=None)
    train(replace(recipe, data=data), dry_run=True)
