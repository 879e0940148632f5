"""The documents of one input file of `lrc prepare`: every row read, filtered, turned into text, and tallied."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TextIO

from lrc.data.order import WORD, mix
from lrc.data.row_text import BadRow, meets, num_bytes, text_of
from lrc.data.source_rows import ReadShare, SourceRow
from lrc.data_config import PrepareConfig, SourceConfig

PUT_ASIDE = "put aside as held out"
LISTED = 1000
"""Bad rows of a file whose numbers and reasons are kept; the others are counted."""
REASON_CHARACTERS = 200


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
    """What became of a file's rows."""

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    num_bad: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    """(row, reason) of the first `LISTED` ones."""
    read: ReadShare = field(default_factory=ReadShare)
    watch: "Callable[[Tally], None] | None" = None
    """Called after `LISTED` bad rows and whenever they have doubled."""

    def add_bad(self, row: int, reason: str) -> None:
        """Count a bad row."""
        self.num_bad += 1
        if self.num_bad <= LISTED:
            self.bad.append((row, reason[:REASON_CHARACTERS]))
        times, rest = divmod(self.num_bad, LISTED)
        if self.watch is not None and rest == 0 and times & (times - 1) == 0:
            self.watch(self)


class _Rejected(Exception):
    """A good row that the recipe does not want; its text is the reason."""


def read_documents(
    rows: Iterator[SourceRow],
    settings: PrepareConfig,
    source: SourceConfig,
    *,
    key: int,
    chat_text: Callable[[list[dict[str, str]]], str],
    tally: Tally,
) -> Iterator[str]:
    """Yield the documents that are kept, and tally every row.

    Args:
        rows: Of the file.
        settings: The recipe's `prepare`.
        source: The file's source.
        key: The file's number; with seed and row number it chooses the rows that `keep` keeps.
        chat_text: The chat template.
        tally: Is added to.
    """
    keep_key = mix(mix(settings.seed) ^ key)
    for row in rows:
        tally.rows += 1
        try:
            text = _text(row, source, chat_text, keep_key)
            _check_text(text, settings.max_document_bytes)
        except BadRow as reason:
            tally.add_bad(row.number, str(reason))
        except _Rejected as reason:
            tally.rejected[str(reason)] += 1
        else:
            yield text


def put_aside(texts: Iterator[str], aside: TextIO, *, share: float, seed: int, tally: Tally) -> Iterator[str]:
    """Write a share of the documents to `aside`, a JSON line each, and yield the others.

    A document is chosen by its text, so all its exact copies are, in whatever file they lie.

    Args:
        texts: The documents of a file.
        aside: Takes those that are chosen.
        share: Of all documents, in 0..1.
        seed: Chooses others.
        tally: Counts those that are put aside.
    """
    key = mix(seed).to_bytes(8, "big")
    for text in texts:
        if int.from_bytes(blake2b(text.encode(), key=key, digest_size=8).digest(), "big") < share * WORD:
            aside.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            tally.rejected[PUT_ASIDE] += 1
        else:
            yield text


def _text(row: SourceRow, source: SourceConfig, chat_text: Callable[[list[dict[str, str]]], str], keep_key: int) -> str:
    if row.value is None:
        raise BadRow(row.problem)
    if source.keep < 1 and mix(keep_key ^ row.number) > source.keep * WORD:
        raise _Rejected("not among the share kept")
    for condition in source.filters:
        if not meets(row.value, condition):
            raise _Rejected(condition)
    text = text_of(row.value, source, chat_text)
    if not text:
        raise _Rejected("empty text")
    return text


def _check_text(text: str, limit: int) -> None:
    if num_bytes(text) > limit:
        raise BadRow(f"longer than prepare.max_document_bytes = {limit}")
