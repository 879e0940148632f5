"""`~/` at the front of a path in a recipe or a published flag: no shell has turned it into the home folder."""

import dataclasses
from pathlib import Path
from typing import Any


def expand_home(value: Any) -> Any:
    """Expand `~/` at the front of a text, or of every text in a recipe (only paths begin so), to the home folder.

    Args:
        value: A text, or a dataclass, list or tuple that holds some; anything else is returned as it is.
    """
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path(value).expanduser())
    if isinstance(value, list | tuple):
        return type(value)(map(expand_home, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {entry.name: expand_home(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value
