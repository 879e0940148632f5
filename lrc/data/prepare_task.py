"""One task of `lrc prepare`: one input file, read, filtered, tokenised and written as one shard.

datatrove's executor runs the tasks. What a task writes depends on its file and the settings alone (and, with dedupe, on
what the stages before it found), so neither the number of workers nor a kill changes a byte.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from lrc.data.bad_rows import BadRowWatch
from lrc.data.documents import InputFile, Tally, put_aside, read_documents
from lrc.data.encoder import open_encoder
from lrc.data.file_hash import file_sha256
from lrc.data.row_text import read_fields
from lrc.data.shards import ShardWriter, token_dtype
from lrc.data.source_files import is_remote, on_this_machine
from lrc.data.source_rows import read_rows
from lrc.data.task_results import read_finished, result_path, shard_name
from lrc.data.whole_file import write_if_changed
from lrc.data_config import PrepareConfig
from lrc.errors import DataError

BATCH_CHARACTERS = 500_000
"""Text tokenised at once; bounds the memory of a worker."""
FILES = "files.json"
DRAFT = "-partial"
"""Part of the names of unfinished files."""
OVER_BUDGET = "over the token budget"
HELD_OUT = ".held-out"
"""Ending of a task's file of documents that are put aside."""


@dataclass
class PrepareTask:
    """The pipeline step that datatrove's executor copies to its workers and calls once a task."""

    files: tuple[InputFile, ...]
    settings: PrepareConfig
    vocab_size: int
    folder: str
    """Where the shards are written; holds the encoder and the list of files."""

    def save_files(self) -> None:
        """Write the list of files to the folder, where copies of this task find it.

        Its paths are absolute: a Ray worker runs in a folder of its own. This task keeps those of the recipe.
        """
        files = [asdict(file) for file in self.files]
        for file in files:
            file["path"] = file["path"] if is_remote(file["path"]) else os.path.abspath(file["path"])
        write_if_changed(Path(self.folder) / FILES, json.dumps(files).encode())

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the files: datatrove copies its steps once a task, and a list of 28,000 takes 1.5 s each time."""
        return {name: value for name, value in vars(self).items() if name != "files"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        path = Path(state["folder"]) / FILES
        self.__dict__.update(state, files=_read_files(path, path.stat().st_mtime_ns))

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Write the shard of file `rank` unless the files before it fill the source's budget.

        Raises:
            DataError: The file is damaged, or the disk is full.
        """
        assert world_size == len(self.files)
        if self._is_needed(rank):
            self._write_shard(rank)

    def texts(self, rank: int, local: Path, tally: Tally) -> Iterator[str]:
        """Yield the documents of file `rank`, which lies at `local`, as the recipe's filters leave them."""
        file = self.files[rank]
        source = self.settings.sources[file.source]
        return read_documents(
            read_rows(local, name=file.path, columns=read_fields(source), read=tally.read),
            self.settings,
            source,
            key=rank,
            chat_text=open_encoder(Path(self.folder)).chat_text,
            tally=tally,
        )

    def _kept_texts(self, rank: int, local: Path, tally: Tally) -> Iterator[str]:
        """Leave out duplicates and contaminated documents too, if the recipe asks for that."""
        texts, settings = self.texts(rank, local, tally), self.settings
        if settings.exact_dedupe or settings.minhash_dedupe or settings.decontaminate:
            from lrc.data.dedupe import drop_found

            return drop_found(texts, self, rank, tally)
        return texts

    def _share_aside(self, rank: int) -> float:
        """Return the share of file `rank`'s documents that are put aside: none of chats."""
        is_text = self.settings.sources[self.files[rank].source].kind == "text"
        return self.settings.held_out_share if is_text else 0.0

    def _is_needed(self, rank: int) -> bool:
        """Tell whether the budget may reach this file: not if the source's first files, all done, already fill it."""
        source = self.files[rank].source
        budget = self.settings.sources[source].max_tokens
        if budget is None:
            return True
        tokens = 0
        for task in range(rank):
            if self.files[task].source != source:
                continue
            finished = read_finished(Path(self.folder), task)
            if finished is None:
                return True
            tokens += finished.tokens
            if tokens >= budget:
                return False
        return True

    def _watch(self, rank: int) -> BadRowWatch:
        return BadRowWatch(
            files=self.files,
            source=self.settings.sources[self.files[rank].source],
            limit=self.settings.max_bad_share,
            folder=Path(self.folder),
            rank=rank,
        )

    def _write_shard(self, rank: int) -> None:
        folder = Path(self.folder)
        draft = draft_path(folder, rank)
        try:
            with on_this_machine(self.files[rank].path, draft) as local:
                result = self._fill_shard(rank, draft, local)
            for suffix in (".bin", ".starts", *([HELD_OUT] if self._share_aside(rank) else [])):
                os.replace(draft.with_suffix(suffix), (folder / shard_name(rank)).with_suffix(suffix))
            draft.with_suffix(".json").write_text(json.dumps(result))
            os.replace(draft.with_suffix(".json"), result_path(folder, rank))
        except OSError as error:
            raise DataError(
                f"{folder} can't be written: {error}. Free some space and run again: finished files are kept."
            ) from error
        finally:
            for suffix in (".bin", ".starts", HELD_OUT, ".json"):
                draft.with_suffix(suffix).unlink(missing_ok=True)

    def _fill_shard(self, rank: int, draft: Path, local: Path) -> dict[str, Any]:
        """Write a shard and return what became of the rows."""
        encoder = open_encoder(Path(self.folder))
        tally, largest = Tally(watch=self._watch(rank)), 0
        budget = self.settings.sources[self.files[rank].source].max_tokens
        texts = self._kept_texts(rank, local, tally)
        with ExitStack() as files:
            writer = files.enter_context(ShardWriter(draft, token_dtype(self.vocab_size)))
            if share := self._share_aside(rank):
                aside = files.enter_context(open(draft.with_suffix(HELD_OUT), "w", encoding="utf-8"))
                texts = put_aside(texts, aside, share=share, seed=self.settings.seed, tally=tally)
            for batch in _batches(texts):
                ids, lengths = encoder.encode(batch)
                if budget is not None:
                    lengths = _within(lengths, budget - writer.num_tokens)
                    ids = ids[: lengths.sum()]
                writer.add(ids, lengths)
                largest = max(largest, int(ids.max()))
                if budget is not None and writer.num_tokens >= budget:
                    break
        left = tally.rows - sum(tally.rejected.values()) - tally.num_bad - writer.num_documents
        if left:  # of the batch whose document reached the budget
            tally.rejected[OVER_BUDGET] += left
        return {
            "rows": tally.rows,
            "rejected": dict(sorted(tally.rejected.items())),
            "bad_rows": tally.num_bad,
            "bad": tally.bad,
            "documents": writer.num_documents,
            "tokens": writer.num_tokens,
            "largest_id": largest,
            "sha256": file_sha256(local),
        }


def draft_path(folder: Path, rank: int) -> Path:
    """Name a task's unfinished files as no other process does: one that outlived a killed run may write its own."""
    return folder / f"{shard_name(rank)}-{uuid4().hex}{DRAFT}"


def remove_drafts(folder: Path) -> None:
    """Delete what killed tasks left unfinished; no task may be running."""
    for draft in folder.glob(f"*{DRAFT}[.-]*"):
        draft.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def _read_files(path: Path, _written_ns: int) -> tuple[InputFile, ...]:
    return tuple(InputFile(**file) for file in json.loads(path.read_text()))


def _within(lengths: np.ndarray, room: int) -> np.ndarray:
    """Keep the documents up to the one that fills the room."""
    return lengths[: int(np.searchsorted(np.cumsum(lengths), room)) + 1]


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
