"""Tiny teachers, tokenizers and data on disk: everything an end-to-end test needs, made here."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lrc.config import Recipe, recipe_from_dict
from tests.models.tiny_configs import tiny_config

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"w{number}" for number in range(44))]


def tiny_teacher(family: str, *, seed: int = 0, **changes: Any) -> nn.Module:
    """Make a random teacher whose norms and biases differ from their start values too."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def teacher_folder(folder: Path, family: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """Save a tiny teacher with a word-level tokenizer."""
    tiny_teacher(family, seed=seed, **changes).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Save the word-level tokenizer beside a teacher."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def write_rows(path: Path, *, rows: int = 40, length: int = 16, seed: int = 0, ragged: bool = False) -> Path:
    """Write tokenised rows in the published format; ids follow a pattern that a model can learn."""
    generator = torch.Generator().manual_seed(seed)
    lines = []
    for row in range(rows):
        first, step = torch.randint(4, 48, (2,), generator=generator).tolist()
        size = length - (row % 5 if ragged else 0)
        ids = [4 + (first + step * position) % 44 for position in range(size)]
        lines.append(json.dumps({"input_ids": ids, "data_cls": "even" if row % 2 == 0 else "odd"}))
    path.write_text("\n".join(lines) + "\n")
    return path


def tiny_recipe(root: Path, **changes: Any) -> Recipe:
    """Make a recipe for a tiny run below `root`, teacher and data included; `section__key` changes a value."""
    teacher, data, held_out = root / "teacher", root / "train.jsonl", root / "held_out.jsonl"
    if not teacher.exists():
        teacher_folder(teacher)
        write_rows(data)
        write_rows(held_out, rows=4, seed=1)
    values: dict[str, Any] = {
        "run": str(root / "run"),
        "teacher": str(teacher),
        "student": {"hidden_size": 16},
        "start": {"tokens": 256},
        "data": {"train": str(data), "held_out": str(held_out), "sequence_length": 16, "held_out_tokens": 64},
        "train": {
            "max_steps": 6,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "log_steps": 2,
            "save_steps": 2,
            "save_total_limit": None,
            "compute_dtype": "float32",
            "device": "cpu",
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return recipe_from_dict(values, origin="test")
