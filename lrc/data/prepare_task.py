"""One task of `lrc prepare`: one input file, read, filtered, tokenised and written as one shard.

datatrove's executor runs the tasks. What a task writes depends on its file and the settings alone, so neither the
number of workers nor a kill changes a byte.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from lrc.data.file_hash import file_sha256
from lrc.data.order import WORD, mix
from lrc.data.row_text import BadRow, meets, text_of
from lrc.data.shards import ShardWriter, token_dtype
from lrc.data.source_files import on_this_machine
from lrc.data.source_rows import SourceRow, read_rows
from lrc.data_config import PrepareConfig, SourceConfig
from lrc.errors import DataError

BATCH_CHARACTERS = 500_000
"""Text tokenised at once; bounds the memory of a worker."""
OVER_BUDGET = "over the token budget"


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One file of one source."""

    source: int
    """Number of the source in the recipe."""
    path: str
    """Path or URL."""
    num_bytes: int
    version: str
    """As `SourceFile.version`."""


@dataclass
class Tally:
    """What became of a file's rows; `OUT.json` of a task."""

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, str]] = field(default_factory=list)
    """(row, reason)."""


@dataclass
class PrepareTask:
    """The pipeline step that datatrove's executor copies to its workers and calls once a task."""

    files: tuple[InputFile, ...]
    settings: PrepareConfig
    tokenizer: str
    """The tokenizer's folder."""
    vocab_size: int
    folder: str
    """Where the shards are written."""

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Write the shard of file `rank` unless the files before it fill the source's budget.

        Raises:
            DataError: The file is damaged, or the disk is full.
        """
        assert world_size == len(self.files)
        if self._is_needed(rank):
            self._write_shard(rank)

    def __setstate__(self, state: dict[str, Any]) -> None:
        from loguru import logger

        logger.disable("datatrove")  # in the worker, where this object arrives before anything is logged
        self.__dict__.update(state)

    def _is_needed(self, rank: int) -> bool:
        """Tell whether the budget may reach this file; if all before it are done, their sum says so."""
        source = self.files[rank].source
        budget = self.settings.sources[source].max_tokens
        if budget is None:
            return True
        before = [result_path(Path(self.folder), task) for task in range(rank) if self.files[task].source == source]
        if not all(path.is_file() for path in before):
            return True
        tokens: list[int] = [json.loads(path.read_text())["tokens"] for path in before]
        return sum(tokens) < budget

    def _write_shard(self, rank: int) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
        file, folder = self.files[rank], Path(self.folder)
        draft = folder / f"{rank:05d}-partial"
        try:
            with on_this_machine(file.path, draft) as local:
                result = self._fill_shard(rank, draft, local)
            for suffix in (".bin", ".starts"):
                os.replace(draft.with_suffix(suffix), (folder / shard_name(rank)).with_suffix(suffix))
            draft.with_suffix(".json").write_text(json.dumps(result))
            os.replace(draft.with_suffix(".json"), result_path(folder, rank))
        except OSError as error:
            raise DataError(
                f"{folder} can't be written: {error}. Free some space and run again: finished files are kept."
            ) from error

    def _fill_shard(self, rank: int, draft: Path, local: Path) -> dict[str, Any]:
        """Write a shard and return what became of the rows."""
        budget = self.settings.sources[self.files[rank].source].max_tokens
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        tally, largest = Tally(), 0
        rows = read_rows(local, name=self.files[rank].path)
        with ShardWriter(draft, token_dtype(self.vocab_size)) as writer:
            for ids in tokenised(self._texts(rows, rank, tokenizer, tally), tokenizer):
                writer.add(ids)
                largest = max(largest, int(ids.max()))
                if budget is not None and writer.num_tokens >= budget:
                    break
        left = tally.rows - sum(tally.rejected.values()) - len(tally.bad) - writer.num_documents
        if left:  # of the batch whose document reached the budget
            tally.rejected[OVER_BUDGET] += left
        return {
            "rows": tally.rows,
            "rejected": dict(sorted(tally.rejected.items())),
            "bad": tally.bad,
            "documents": writer.num_documents,
            "tokens": writer.num_tokens,
            "largest_id": largest,
            "sha256": file_sha256(local),
        }

    def _texts(self, rows: Iterator[SourceRow], rank: int, tokenizer: Any, tally: Tally) -> Iterator[str]:
        """Yield the documents that are kept, and tally every row."""
        source = self.settings.sources[self.files[rank].source]
        key = mix(mix(self.settings.seed) ^ rank)
        for row in rows:
            tally.rows += 1
            try:
                text = self._text(row, source, tokenizer, key)
            except BadRow as reason:
                tally.bad.append((row.number, str(reason)))
            except _Rejected as reason:
                tally.rejected[str(reason)] += 1
            else:
                yield text

    def _text(self, row: SourceRow, source: SourceConfig, tokenizer: Any, key: int) -> str:
        if row.value is None:
            raise BadRow(row.problem)
        if source.keep < 1 and mix(key ^ row.number) > source.keep * WORD:
            raise _Rejected("not among the share kept")
        for condition in source.filters:
            if not meets(row.value, condition):
                raise _Rejected(condition)
        text = text_of(row.value, source, tokenizer)
        if not text:
            raise _Rejected("empty text")
        limit = self.settings.max_document_bytes
        if len(text) > limit or len(text.encode("utf-8", "surrogatepass")) > limit:
            raise BadRow(f"longer than prepare.max_document_bytes = {limit}")
        return text


class _Rejected(Exception):
    """A good row that the recipe does not want; its text is the reason."""


def tokenised(texts: Iterator[str], tokenizer: Any) -> Iterator[np.ndarray]:
    """Tokenise documents in batches and put the boundary tokens around each: bos text eos, neither twice."""
    for batch in _batches(texts):
        if tokenizer.is_fast:
            encodings = tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            lists = [encoding.ids for encoding in encodings]
        else:
            lists = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        for ids in lists:
            yield with_boundaries(ids, tokenizer.bos_token_id, tokenizer.eos_token_id)


def with_boundaries(ids: Sequence[int], bos: int | None, eos: int | None) -> np.ndarray:
    """Put bos before and eos behind, unless there is none or a chat template has put it there."""
    front = [] if bos is None or (len(ids) and ids[0] == bos) else [bos]
    back = [] if eos is None or (len(ids) and ids[-1] == eos) else [eos]
    return np.asarray([*front, *ids, *back], dtype=np.int64)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def shard_name(task: int) -> str:
    """Name a task's shard."""
    return f"{task:05d}"


def result_path(folder: Path, task: int) -> Path:
    """Name the file that says that a task is done, and what became of its rows."""
    return folder / f"{task:05d}.json"
