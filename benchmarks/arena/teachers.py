"""The teachers of the arena, the widths of their students, how much text a cell of each reads and is measured on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lrc.errors import ConfigError

from .alone import alone

SMOLLM2 = "embedded:smollm2-135m-instruct"


@dataclass(frozen=True, kw_only=True)
class TeacherEntry:
    """One teacher and the size of everything around it."""

    source: str | None
    """What a recipe calls it; None: the arena fetches or makes it."""
    widths: dict[str, int]
    """Name -> hidden size of the student."""
    sequence_length: int = 256
    batch_size: int = 4
    start_tokens: int = 256_000
    """Calibration tokens, as many as the headline trains on (docs/quality.md, "How many calibration tokens")."""
    train_bytes: int = 8_000_000
    """Text to train on."""
    measured_tokens: int = 4_096
    """Tokens of each text that a point of the curve is measured on."""
    headline: str = "250k"
    """Token budget of the main table."""
    short: str = "60k"
    """Token budget of sweeps and of picking a learning rate."""
    is_compiled: bool = True
    """Whether layers run through torch.compile."""

    @property
    def measured_windows(self) -> int:
        """Rows that hold the measured tokens."""
        return -(-self.measured_tokens // self.sequence_length)


def teachers() -> dict[str, TeacherEntry]:
    """Return the teachers by the name that cells call them."""
    return {
        "smollm2": TeacherEntry(source=SMOLLM2, widths={"three-quarters": 432, "half": 288, "third": 192}),
        "gemma3": TeacherEntry(source=None, widths={"three-quarters": 480, "half": 320, "third": 216}),
        "tiny": TeacherEntry(
            source=None,
            widths={"half": 32},
            sequence_length=64,
            batch_size=4,
            start_tokens=2_048,
            train_bytes=200_000,
            measured_tokens=512,
            headline="16k",
            short="8k",
            is_compiled=False,  # twenty seconds, to train for one
        ),
    }


def make_tiny_teacher(folder: Path, *, text: str, steps: int) -> Path:
    """Train a byte-level Llama of hidden size 64 on text for some steps, and save it; a finished one is kept.

    Args:
        folder: Where it goes.
        text: What it learns.
        steps: Steps of 512 bytes.
    """
    with alone(folder):
        if not (folder / "config.json").is_file():
            _make_tiny_teacher(folder, text, steps)
    return folder


def _make_tiny_teacher(folder: Path, text: str, steps: int) -> None:
    tokenizer = byte_tokenizer()
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if len(ids) < 65:
        raise ConfigError("The tiny teacher's text must have at least 65 bytes.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=4,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1 - step / steps)
            starts = torch.randint(len(ids) - 64, (8,))
            rows = torch.stack([ids[start : start + 64] for start in starts.tolist()])
            loss = model(input_ids=rows, labels=rows).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)  # the config comes last, so a folder that was cut off is made anew


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of bytes, begin and end marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{symbol: 2 + place for place, symbol in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
