"""Raw sources and a tokenizer for them, made here: every text has ids, and its ids give the text back."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lrc.config import Recipe
from lrc.data.encoder import save_encoder
from lrc.data.plan_tasks import plan_files
from lrc.data.prepare_task import PrepareTask
from lrc.data_config import PrepareConfig
from tests.tiny import teacher_folder, tiny_recipe

CHAT_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def byte_tokenizer(folder: Path, *, bos: bool = True, eos: bool = True, chat: bool = True) -> Path:
    """Save a tokenizer with one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {**({"bos_token": "<s>"} if bos else {}), **({"eos_token": "</s>"} if eos else {})}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return folder


def lines_of(rows: list[Any]) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def write_source(path: Path, rows: list[Any]) -> Path:
    """Write rows in the format that the name says; bytes among JSON rows go in as they are."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines_of(rows), mtime=0))
    elif path.suffix in (".zst", ".zstd"):
        path.write_bytes(zstandard.compress(lines_of(rows)))
    else:
        path.write_bytes(lines_of(rows))
    return path


def prepare_recipe(
    root: Path, *sources: dict[str, Any], tokenizer: dict[str, bool] | None = None, **more: Any
) -> Recipe:
    """Make a recipe that prepares sources with the byte tokenizer in one process; `more` is of its `prepare`."""
    teacher = root / "teacher"
    if not teacher.exists():
        teacher_folder(teacher, vocab_size=300)
        byte_tokenizer(teacher, **(tokenizer or {}))
    return tiny_recipe(root, prepare={"sources": list(sources), "workers": 1, **more})


def make_task(out: Path, settings: PrepareConfig, tokenizer: Path, *, vocab_size: int = 258) -> PrepareTask:
    """Plan the tasks of `settings` with the tokenizer of a folder, to be written in `out`."""
    out.mkdir(exist_ok=True)
    save_encoder(AutoTokenizer.from_pretrained(tokenizer), tokenizer, out)
    task = PrepareTask(files=plan_files(settings), settings=settings, vocab_size=vocab_size, folder=str(out))
    task.save_files()
    return task


def run_task(task: PrepareTask) -> PrepareTask:
    """Run every task in order, in this process."""
    for rank in range(len(task.files)):
        task(None, rank, len(task.files))
    return task


def texts(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"text": f"document {number} " + "x" * (number % 7), "int_score": number % 5}
        for number in range(start, start + count)
    ]
