"""A tiny Llama with a byte-level BPE tokenizer that was trained here, which no list of published tokenizers knows."""

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_teacher

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)


def pre_tokenizer(name: str) -> Any:
    """Make the pre-tokenizer that llama.cpp calls by this name, or for `other` one that it has no name for."""
    bare = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splitting = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "gpt-2":
        return splitting
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), splitting])
    pattern = {
        "llama-bpe": LLAMA_3,
        "qwen2": LLAMA_3.replace("{1,3}", ""),
        "other": "\\p{N}{2}|[^\\p{N}]+",
    }[name]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bare])


def save_bpe_tokenizer(folder: Path, *, split: str = "gpt-2") -> int:
    """Train and save a tokenizer; returns the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(
        ["The quick brown fox jumps over 1234 lazy dogs, and it's 500 g of flour."] * 9, trainer
    )
    names = {"bos_token": SPECIAL[0], "unk_token": SPECIAL[0], "eos_token": SPECIAL[2], "pad_token": SPECIAL[2]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def bpe_student(folder: Path, family: str = "llama", *, split: str = "gpt-2", **changes: Any) -> Path:
    """Save a tiny student with such a tokenizer; `changes` go to its config."""
    folder.mkdir(parents=True, exist_ok=True)
    size = save_bpe_tokenizer(folder, split=split)
    sizes = {"vocab_size": size, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 2}
    tiny_teacher(family, **(sizes | changes)).save_pretrained(folder)
    return folder
