"""What went into the training data: the sources of a manifest that `lrc prepare` wrote."""

from dataclasses import dataclass
from pathlib import Path

from lrc.report.json_fields import read_json

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One source of the training data."""

    path: str
    """As the recipe names it."""
    kind: str
    """`text` or `chat`."""
    rows: int
    """Rows read."""
    kept: int
    """Documents kept."""
    tokens: int
    """Tokens kept."""


def read_sources(path: Path) -> tuple[DataSource, ...]:
    """Read the sources of a manifest; one that another tool wrote may have none.

    Raises:
        DataError: The manifest is damaged.
    """
    values = read_json(path)
    if "sources" not in values.values:
        return ()
    return tuple(
        DataSource(
            path=source.text("path"),
            kind=source.text("kind"),
            rows=source.count("rows"),
            kept=source.count("kept"),
            tokens=source.count("tokens"),
        )
        for source in values.sections("sources")
    )
