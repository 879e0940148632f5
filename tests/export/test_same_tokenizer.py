"""A copied tokenizer gives the ids that it gave, whichever class the config beside it asks for."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lrc.errors import CheckpointError
from lrc.export.same_tokenizer import PROBE, keep_tokenizer
from tests.models.tiny_configs import tiny_config

FILES = ("tokenizer.json", "tokenizer_config.json")


def qwen_tokenizer(folder: Path) -> None:
    """Save a byte-level tokenizer as Qwen2's files have it, though one that keeps runs of digits together."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"12": len(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("1", "2")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A Qwen2 student whose tokenizer is of Qwen2's class, and a Llama draft that gets it without that class.

    transformers 5.23 takes that class beside a Qwen2 unasked, 5.6 only where the file names it.
    """
    student, draft = tmp_path / "student", tmp_path / "draft"
    tiny_config("qwen2").save_pretrained(student)
    tiny_config("llama").save_pretrained(draft)
    qwen_tokenizer(student)
    for name in FILES:
        shutil.copyfile(student / name, draft / name)
    name_class(student)
    return student, draft


def name_class(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}))


def ids(folder: Path) -> list[int]:
    found: list[int] = AutoTokenizer.from_pretrained(folder)(PROBE)["input_ids"]
    return found


def test_the_class_that_reads_alike_is_named(pair: tuple[Path, Path]) -> None:
    student, draft = pair
    assert ids(draft) != ids(student)  # Qwen2's class splits digits whatever tokenizer.json says
    keep_tokenizer(student, draft)
    assert ids(draft) == ids(student)
    assert json.loads((draft / "tokenizer_config.json").read_text())["tokenizer_class"] == "Qwen2Tokenizer"


def test_a_tokenizer_that_reads_alike_is_not_touched(pair: tuple[Path, Path]) -> None:
    student, draft = pair
    name_class(draft)
    keep_tokenizer(student, draft)
    assert all((draft / name).read_bytes() == (student / name).read_bytes() for name in FILES)


def test_a_tokenizer_that_can_not_read_alike_is_refused(pair: tuple[Path, Path]) -> None:
    student, draft = pair
    values = json.loads((draft / "tokenizer.json").read_text())
    values["model"]["vocab"] = {word: 256 - index for word, index in values["model"]["vocab"].items()}
    (draft / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="Qwen2Tokenizer either"):
        keep_tokenizer(student, draft)


def test_a_folder_without_tokenizer_is_left_alone(pair: tuple[Path, Path]) -> None:
    for folder in pair:
        for name in FILES:
            (folder / name).unlink()
    keep_tokenizer(*pair)
