"""A tokenizer that reads beside another model class as it read beside the student's.

AutoTokenizer takes a class by the model's type for some (`qwen2`) and by `tokenizer_config.json` for others (`llama`).
"""

import json
from pathlib import Path

from lrc.errors import CheckpointError
from lrc.models.teacher import load_tokenizer

PROBE = "Hello, world!\n  It's 12345 + 67.8 = naïve Übermut 你好 <b>x</b>\t..."


def keep_tokenizer(student: Path, draft: Path) -> None:
    """Check that a copied tokenizer gives the ids that it gave; if it does not, name the class that does.

    Args:
        student: The folder that it was copied from.
        draft: The folder that is being written, its config already there.

    Raises:
        CheckpointError: It reads a text otherwise even so.
    """
    before = load_tokenizer(student)
    if before is None or _ids(draft) == before(PROBE)["input_ids"]:
        return
    path = draft / "tokenizer_config.json"
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(values | {"tokenizer_class": type(before).__name__}, indent=2) + "\n")
    if _ids(draft) != before(PROBE)["input_ids"]:
        raise CheckpointError(
            f"The tokenizer must read a text beside a Llama as it does in {student}, but does not, as "
            f"{type(before).__name__} either. Save the student with a tokenizer.json that says all there is to say."
        )


def _ids(folder: Path) -> list[int]:
    ids: list[int] = load_tokenizer(folder)(PROBE)["input_ids"]
    return ids
