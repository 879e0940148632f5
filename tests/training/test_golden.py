"""Golden losses of a 20-step run: a refactor leaves them equal, a change of maths updates them and says why.

`LRC_WRITE_GOLDEN=1 pytest tests/training/test_golden.py` writes the file anew.
"""

import json
import os
from pathlib import Path

import pytest

from lrc.verbs.train import train
from tests.tiny import tiny_recipe

GOLDEN = Path(__file__).with_name("golden_losses.json")
PUBLISHED = {
    "objective__temperature": 40.0,
    "objective__kl_reduction": "published",
    "objective__lm_weight": 1.0,
    "objective__clone_error": "raw",
    "objective__clone_reduction": "sum",
    "objective__attention_output_space": "teacher",
}
OBJECTIVES = {"default": {}, "published": PUBLISHED}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("start", ["random", "channel", "pca", "calibrated"])
def test_losses_are_the_golden_ones(tmp_path: Path, start: str, objective: str) -> None:
    changes = {"start__method": start, "train__max_steps": 20, "train__log_steps": 1, "train__save_steps": 20}
    train(tiny_recipe(tmp_path, **changes, **OBJECTIVES[objective]))
    text = (tmp_path / "run" / "train" / "metrics.jsonl").read_text()
    losses = [line["loss"] for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]
    assert len(losses) == 20
    key = f"{start}/{objective}"
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("LRC_WRITE_GOLDEN"):
        golden[key] = [round(loss, 6) for loss in losses]
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    assert losses == pytest.approx(golden[key], rel=2e-4)
