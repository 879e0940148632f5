"""All chats of a source as training sequences in an Arrow file, with a count of everything that happened to them."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from lrc.clone.head import IGNORED_LABEL
from lrc.data.row_text import BadRow
from lrc.errors import DataError
from lrc.sft.chat_encoder import ChatEncoder, Sample
from lrc.sft.conversations import Conversation, read_conversations
from lrc.sft_config import SftConfig

ROWS_A_BATCH = 512
LISTED_BAD_ROWS = 20
SCHEMA_FIELDS = ("input_ids", "labels")


@dataclass
class ChatCounts:
    """What became of the rows of a source."""

    rows: int = 0
    bad_rows: int = 0
    """Rows that are no usable chat."""
    listed_bad_rows: list[str] = field(default_factory=list)
    """`file:line: reason` of the first of them."""
    sequences: int = 0
    """Training sequences; more than rows where a template needs one for each answer."""
    truncated: int = 0
    """Over-long sequences whose end was cut off."""
    dropped: int = 0
    """Over-long sequences left out, as `sft.over_long` asks."""
    answerless: int = 0
    """Over-long sequences left out since no answer begins before the cut."""
    longest: int = 0
    """Tokens of the longest sequence, before any cut."""
    unended_answers: int = 0
    """Answers that no end mark follows."""
    tokens: int = 0
    answer_tokens: int = 0
    """Tokens that are learnt."""

    def facts(self) -> dict[str, Any]:
        """Return the counts as they stand in `sft.json`."""
        return asdict(self)

    def line(self) -> str:
        """Say it in a line."""
        parts = [f"{self.sequences} sequences of {self.rows} rows", f"{self.tokens} tokens"]
        parts.append(f"{self.answer_tokens} of them answers")
        for count, what in (
            (self.bad_rows, "bad rows left out"),
            (self.truncated, "cut off"),
            (self.dropped, "dropped as over-long"),
            (self.answerless, "dropped since no answer begins before the cut"),
            (self.unended_answers, "answers without an end mark, which the model won't learn to stop after"),
        ):
            if count:
                parts.append(f"{count} {what}")
        return ", ".join(parts)


def read_samples(
    source: str,
    encoder: ChatEncoder,
    settings: SftConfig,
    counts: ChatCounts,
    scratch: Path,
) -> Iterator[Sample]:
    """Yield the training sequences of a source, cut to `sft.sequence_length`, and count everything.

    Args:
        source: File, folder, glob or URL of chats.
        encoder: The student's tokenizer.
        settings: The recipe's `sft`.
        counts: Is added to.
        scratch: A folder for remote files.

    Raises:
        DataError: A row is no usable chat and `sft.max_bad_share` is 0, or there are more of them than it allows.
    """
    for row in read_conversations(source, scratch):
        counts.rows += 1
        for sample in _encoded(row, encoder, settings, counts):
            counts.longest = max(counts.longest, len(sample.ids))
            kept = _fitted(sample, settings, counts)
            if kept is not None:
                counts.sequences += 1
                counts.unended_answers += kept.num_unended
                counts.tokens += len(kept.ids)
                counts.answer_tokens += sum(label != IGNORED_LABEL for label in kept.labels)
                yield kept
    _check_bad_share(source, settings, counts)
    if not counts.sequences:
        raise DataError(f"{source} must hold at least one chat that fits into sft.sequence_length, found none.")


def held_out_chats(encoder: ChatEncoder, settings: SftConfig) -> tuple[list[tuple[list[int], list[int]]], ChatCounts]:
    """Read the first chats of `sft.held_out`, and no further.

    Returns:
        The chats as (ids, labels), none if the recipe names none, and what became of the rows that were read.

    Raises:
        DataError: As `read_samples`, the share being that of the rows that were read.
    """
    counts = ChatCounts()
    if settings.held_out is None:
        return [], counts
    with TemporaryDirectory() as scratch:
        samples = read_samples(settings.held_out, encoder, settings, counts, Path(scratch))
        chats = [(sample.ids, sample.labels) for sample in islice(samples, settings.held_out_chats)]
    _check_bad_share(settings.held_out, settings, counts)
    return chats, counts


def _check_bad_share(source: str, settings: SftConfig, counts: ChatCounts) -> None:
    if counts.bad_rows > settings.max_bad_share * counts.rows:
        raise DataError(
            f"{source}: {counts.bad_rows} of {counts.rows} rows are no usable chats, more than sft.max_bad_share = "
            f"{settings.max_bad_share} allows: {'; '.join(counts.listed_bad_rows[:3])}. Mend them or raise it."
        )


def _encoded(row: Conversation, encoder: ChatEncoder, settings: SftConfig, counts: ChatCounts) -> list[Sample]:
    problem = row.problem
    if not problem:
        try:
            return encoder.encode(row.messages)
        except BadRow as refusal:
            problem = str(refusal)
    if settings.max_bad_share == 0:
        raise DataError(
            f"{row.where}: {problem}. Mend the row, or let sft.max_bad_share leave such rows out (they are counted)."
        )
    counts.bad_rows += 1
    if len(counts.listed_bad_rows) < LISTED_BAD_ROWS:
        counts.listed_bad_rows.append(f"{row.where}: {problem}")
    return []


def _fitted(sample: Sample, settings: SftConfig, counts: ChatCounts) -> Sample | None:
    length = settings.sequence_length
    if len(sample.ids) <= length:
        return sample
    if settings.over_long == "drop":
        counts.dropped += 1
        return None
    labels = sample.labels[:length]
    if all(label == IGNORED_LABEL for label in labels[1:]):
        counts.answerless += 1
        return None
    counts.truncated += 1
    return Sample(sample.ids[:length], labels, sample.num_unended)


def write_samples(path: Path, samples: Iterator[Sample], progress: Callable[[int], None]) -> None:
    """Write sequences as an Arrow stream that `datasets` maps without reading it.

    Args:
        path: The file.
        samples: The sequences.
        progress: Called with the number written so far.
    """
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in SCHEMA_FIELDS])
    written = 0
    with path.open("wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        while rows := list(islice(samples, ROWS_A_BATCH)):
            columns = [[row.ids for row in rows], [row.labels for row in rows]]
            writer.write_batch(pa.record_batch([pa.array(column, pa.list_(pa.int32())) for column in columns], schema))
            written += len(rows)
            progress(written)
