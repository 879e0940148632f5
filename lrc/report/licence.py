"""The licence of a model folder, from what lies in it; nothing is fetched and nothing is guessed from a name."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

UNKNOWN = "unknown"
"""The hub's own word for a licence that nobody has looked up."""
TEXTS = {
    "apache-2.0": "Apache License\nVersion 2.0",
    "mit": "Permission is hereby granted, free of charge, to any person obtaining a copy of this software",
}
"""Licence -> words that its text begins with or holds."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """A licence as the hub names it, and where that is said."""

    id: str
    name: str | None = None
    """For `other`: its name."""
    link: str | None = None
    """For `other`: where its text is."""
    found_in: str | None = None
    """File that says so, None if none does."""


def read_licence(folder: Path | None) -> Licence:
    """Read a licence from the front matter of README.md, else from the text of LICENSE; else it is unknown."""
    if folder is None:
        return Licence(id=UNKNOWN)
    values = front_matter(folder / "README.md")
    identifier = values.get("license")
    if isinstance(identifier, str) and identifier:
        name, link = (values.get(f"license_{part}") for part in ("name", "link"))
        return Licence(
            id=identifier,
            name=name if isinstance(name, str) else None,
            link=link if isinstance(link, str) else None,
            found_in="README.md",
        )
    for path in sorted(folder.glob("LICENSE*")):
        text = _words(path.read_text(encoding="utf-8", errors="replace"))
        for licence, wanted in TEXTS.items():
            if _words(wanted) in text:
                return Licence(id=licence, found_in=path.name)
        return Licence(id="other", name=path.name, found_in=path.name)
    return Licence(id=UNKNOWN)


def front_matter(path: Path) -> dict[str, object]:
    """Return the YAML block at the head of a card; empty if there is none that can be read."""
    if not path.is_file():
        return {}
    block = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        values = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError:
        return {}  # the card of another model: what it can't tell stays unknown, and the card says so
    return values if isinstance(values, dict) else {}


def _words(text: str) -> str:
    return " ".join(text.split())
