"""The shortest recipe that loads; the fixture `recipe_file` writes it to a file."""

from typing import Any

LEAST: dict[str, Any] = {
    "run": "runs/x",
    "teacher": "owner/model",
    "student": {"hidden_size": 32},
    "data": {"train": "train.jsonl"},
    "train": {"max_steps": 30},
}
