"""`rates.json`: the learning rates that were picked on the development text, with the grid that they come from."""

import json
from pathlib import Path
from typing import Any

from lrc.training.beside import write_beside

from .alone import alone

RATES = "rates.json"


def read_rates(path: Path) -> dict[str, dict[str, Any]]:
    """Return teacher -> method -> entry; nothing if none was picked."""
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def record_rate(path: Path, teacher: str, method: str, entry: dict[str, Any]) -> None:
    """Write one method's entry, and keep those that other processes write meanwhile."""
    with alone(path):
        picked = read_rates(path)
        picked.setdefault(teacher, {})[method] = entry
        write_beside(path, json.dumps(picked, indent=1) + "\n")
