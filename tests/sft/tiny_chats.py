"""A tiny student that chats, and chats for it: a token a byte, ChatML marks, a template like Qwen's or SmolLM2's."""

import json
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.least_recipe import LEAST
from tests.tiny import tiny_teacher

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 260
Turns = list[dict[str, str]]


def chat_tokenizer(template: str | None = CHATML, *, merges: tuple[tuple[str, str], ...] = ()) -> Any:
    """Make a tokenizer with one token a byte and the marks of ChatML; `merges` join bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(one + other for one, other in merges)]
    model = models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=list(merges))
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = template
    return fast


def chat_student(folder: Path, *, seed: int = 0, template: str | None = CHATML, **changes: Any) -> Path:
    """Save a tiny random model with the chat tokenizer."""
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None}
    model: Any = tiny_teacher("llama", seed=seed, **{**sizes, "pad_token_id": None, **changes})
    tokenizer = chat_tokenizer(template)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def turns(*contents: str, system: str | None = None) -> Turns:
    """Make a conversation of what user and assistant say in turn."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents))]


def write_chats(path: Path, *, rows: int = 12, turns_each: int = 2) -> Path:
    """Write chats whose answers repeat the question, of differing lengths."""
    lines = []
    for row in range(rows):
        words = [f"w{row % 5}" * (1 + (row + turn) % 4) for turn in range(turns_each)]
        contents = [text for word in words[: turns_each // 2 or 1] for text in (f"Say {word}", word)]
        lines.append(json.dumps({"messages": turns(*contents)}))
    path.write_text("\n".join(lines) + "\n")
    return path


def sft_root(tmp_path: Path) -> Path:
    """Fill a folder with a student, its teacher, chats and a recipe."""
    chat_student(tmp_path / "teacher", seed=1)
    chat_student(tmp_path / "student", hidden_size=24)
    write_chats(tmp_path / "chats.jsonl", rows=24, turns_each=4)
    write_chats(tmp_path / "held_out.jsonl", rows=4)
    settings = {
        "model": str(tmp_path / "student"),
        "data": str(tmp_path / "chats.jsonl"),
        "held_out": str(tmp_path / "held_out.jsonl"),
        "sequence_length": 128,
        "batch_size": 4,
        "gradient_accumulation_steps": 1,
        "epochs": 2,
        "learning_rate": 3e-3,
        "log_steps": 2,
        "save_steps": 4,
        "compute_dtype": "float32",
        "device": "cpu",
    }
    values = {**LEAST, "run": str(tmp_path / "run"), "teacher": str(tmp_path / "teacher"), "sft": settings}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def snapshot(root: Path) -> dict[str, bytes]:
    """Read every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
