"""The limit of unreadable rows, watched while a task reads: a source that can't meet it any more is not read on.

`prepare.max_bad_share` is a share of all rows of a source, which only the last stage knows. Until then a task counts on
the best that may come, so that it ends nothing that the last stage would let pass.
"""

from dataclasses import dataclass
from pathlib import Path

from lrc.data.documents import InputFile, Tally
from lrc.data.task_results import read_finished
from lrc.data_config import SourceConfig
from lrc.errors import DataError

DENSER = 10
"""Rows to a byte that are granted to what is not read yet, in units of those so far; all count as good."""


@dataclass(frozen=True, kw_only=True)
class BadRowWatch:
    """Called with the tally of file `rank` now and then."""

    files: tuple[InputFile, ...]
    source: SourceConfig
    limit: float
    """`prepare.max_bad_share`."""
    folder: Path
    """Where finished tasks leave their results."""
    rank: int

    def __call__(self, tally: Tally) -> None:
        """End the task if the source can't meet the limit any more.

        Raises:
            DataError: It can't, even if all rows to come are good.
        """
        own, budget = self.files[self.rank], self.source.max_tokens
        rows, bad, num_bytes, tokens = tally.rows, tally.num_bad, tally.read.share * own.num_bytes, 0
        total_bytes = 0
        for rank, file in enumerate(self.files):
            if file.source != own.source:
                continue
            total_bytes += file.num_bytes
            if rank == self.rank or (budget is not None and rank > self.rank):
                continue
            finished = read_finished(self.folder, rank)
            if finished is not None:
                rows, bad, num_bytes = rows + finished.rows, bad + finished.bad_rows, num_bytes + file.num_bytes
                tokens += finished.tokens
            elif budget is not None:
                return  # the budget may end in front of this file
        if budget is not None and tokens >= budget:
            return
        most = rows + DENSER * rows * max(0.0, total_bytes / max(1.0, num_bytes) - 1)
        if bad > self.limit * most:
            line, reason = tally.bad[0]
            raise DataError(
                f"{self.source.path}: at most {self.limit:.2%} of the rows may be unreadable (prepare.max_bad_share), "
                f"found {bad} of the {rows} read so far, too many for the rest to make up for, first "
                f"{own.path}:{line}: {reason}. Mend the data or raise the limit, and run again: "
                "finished files are kept."
            )
