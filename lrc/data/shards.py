"""Packed token shards: documents end to end in memory-mapped files, with an index of where each one starts.

`lrc prepare` writes them (`ShardWriter`), training reads them (`ShardBlocks`). A shard is two files: `NAME.bin`, its
token ids, and `NAME.starts`, the offset of each document's first token. `manifest.json` beside them lists the shards.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lrc.data.block import Block
from lrc.errors import DataError

MANIFEST = "manifest.json"
FORMAT = "lrc-shards/1"
START_DTYPE = "<u8"
"""Dtype of `NAME.starts`: little-endian on every machine."""
START_BYTES = 8
SMALL_VOCABULARY = 65_536
"""Largest vocabulary whose ids take two bytes."""
MAPPED_SHARDS = 64
"""Shards mapped at once, two files each: half of the 256 that macOS lets a process open, an eighth of Linux's 1,024."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the dtype that a vocabulary's ids are stored in, little-endian on every machine."""
    return np.dtype("<u2" if vocab_size <= SMALL_VOCABULARY else "<u4")


class ShardWriter:
    """Writes one shard, a few documents at a time; nothing but these is held in memory."""

    def __init__(self, stem: Path, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.num_tokens = 0
        self.num_documents = 0
        self._tokens = stem.with_suffix(".bin").open("wb")
        self._starts = stem.with_suffix(".starts").open("wb")

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents.

        Args:
            ids: `[tokens]`, the documents end to end, each with its boundary tokens.
            lengths: Tokens of each document, `[documents]`, none 0.

        Raises:
            DataError: An id does not fit into the shard's dtype.
        """
        assert lengths.sum() == len(ids) and (lengths > 0).all()
        largest = int(ids.max(initial=0))
        if largest > np.iinfo(self.dtype).max:
            raise DataError(
                f"{self._tokens.name}: ids must fit into {self.dtype.itemsize} bytes, as all of the tokenizer's "
                f"vocabulary do, but there is token id {largest}. The tokenizer makes ids that it does not list; mend "
                "its files."
            )
        ends = self.num_tokens + np.cumsum(lengths)
        self._starts.write((ends - lengths).astype(START_DTYPE).tobytes())
        self._tokens.write(ids.astype(self.dtype).tobytes())
        self.num_tokens += len(ids)
        self.num_documents += len(lengths)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.close()
        self._starts.close()


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One line of the manifest's `shards`."""

    name: str
    tokens: int
    documents: int
    data_class: str


class ShardBlocks:
    """Blocks of a folder of shards; opening looks at the manifest and the file sizes only.

    A shard's last block is as short as what is left of it, so no token is lost.
    """

    def __init__(self, folder: Path, *, sequence_length: int, vocab_size: int, tokenizer_sha256: str | None) -> None:
        """Open a folder that `lrc prepare` wrote.

        Args:
            folder: The one with `manifest.json`.
            sequence_length: Tokens of a block.
            vocab_size: Ids must be below it.
            tokenizer_sha256: Hash of the teacher's tokenizer; None: not compared.

        Raises:
            DataError: The manifest is damaged, a file is missing or of another size, or the tokens are not this
                teacher's.
        """
        self.folder = folder
        self.sequence_length = sequence_length
        manifest = read_manifest(folder)
        _check_tokenizer(folder, manifest, vocab_size, tokenizer_sha256)
        self.dtype = np.dtype(manifest["token_dtype"])
        self.shards = [Shard(**entry) for entry in manifest["shards"]]
        for shard in self.shards:
            _check_size(folder / f"{shard.name}.bin", shard.tokens * self.dtype.itemsize)
            _check_size(folder / f"{shard.name}.starts", shard.documents * START_BYTES)
        blocks = [-(-shard.tokens // sequence_length) for shard in self.shards]
        self._first = np.cumsum([0, *blocks])
        self._open: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        if len(self) == 0:
            raise DataError(f"{folder} holds no tokens. Prepare the data anew.")

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, index: int) -> Block:
        """Return block `index` and where documents start in it."""
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        tokens, starts = self._mapped(number)
        begin = (index - int(self._first[number])) * self.sequence_length
        ids = tokens[begin : begin + self.sequence_length].astype(np.int64)
        inside = slice(*np.searchsorted(starts, np.asarray([begin, begin + len(ids)], dtype=START_DTYPE)))
        return Block(ids, self.shards[number].data_class, starts[inside].astype(np.int64) - begin)

    def where(self, index: int) -> str:
        """Return the shard, its documents (from 0) and its tokens that a block holds."""
        number = int(np.searchsorted(self._first, index, side="right")) - 1
        tokens, starts = self._mapped(number)
        begin = (index - int(self._first[number])) * self.sequence_length
        end = min(begin + self.sequence_length, len(tokens))
        first = int(np.searchsorted(starts, np.asarray(begin, dtype=START_DTYPE), side="right")) - 1
        last = int(np.searchsorted(starts, np.asarray(end, dtype=START_DTYPE))) - 1
        name = self.folder / f"{self.shards[number].name}.bin"
        return f"{name}: documents {first} to {last}, tokens {begin} to {end - 1}"

    def _mapped(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Map a shard's files; of many shards only those used last stay mapped, for each map holds a descriptor."""
        if number not in self._open:
            stem = self.folder / self.shards[number].name
            tokens = np.memmap(stem.with_suffix(".bin"), dtype=self.dtype, mode="r")
            self._open[number] = tokens, np.memmap(stem.with_suffix(".starts"), dtype=START_DTYPE, mode="r")
            if len(self._open) > MAPPED_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a shard folder's manifest.

    Raises:
        DataError: It is not one of this format.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} must be the manifest of token shards, but it can't be read: {error!r}.") from error
    if found != FORMAT:
        raise DataError(f"{path} must have the format {FORMAT}, found {found!r}. Prepare the data anew.")
    return manifest


def _check_tokenizer(folder: Path, manifest: dict[str, Any], vocab_size: int, tokenizer_sha256: str | None) -> None:
    largest = manifest["largest_id"]
    if largest >= vocab_size:
        raise DataError(
            f"{folder}: token id {largest} is outside the teacher's vocabulary (0 to {vocab_size - 1}). Prepare the "
            "data with the teacher's own tokenizer."
        )
    found = manifest["tokenizer_sha256"]
    if tokenizer_sha256 is not None and tokenizer_sha256 != found:
        raise DataError(
            f"{folder} was made with another tokenizer (SHA-256 {found[:12]}) than the teacher's "
            f"({tokenizer_sha256[:12]}). Prepare the data anew."
        )


def _check_size(path: Path, num_bytes: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != num_bytes:
        size = "is missing" if found is None else f"has {found}"
        raise DataError(f"{path} must have {num_bytes} bytes, but it {size}. Prepare the data anew.")
