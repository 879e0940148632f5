"""Compiled layers, sharded by FSDP2, train as eager ones do in one process."""

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_recipe, write_rows
from tests.training.test_strategies import assert_near, job, losses_of, run_jobs

pytestmark = pytest.mark.slow

STEPS = 4
LOW = {"train__compute_dtype": "bfloat16"}
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer-once": {"train__activation_checkpointing": "layer", "train__merge": "step"},
    "micro": {"train__merge": "micro_batch"},
    "low": LOW,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compiled")
    tiny_recipe(root)
    write_rows(root / "train.jsonl", ragged=True)
    steps = {"train__max_steps": STEPS, "train__save_steps": STEPS}
    jobs = [job(root, "one", "one", **steps), job(root, "one-low", "one", **steps, **LOW)]
    jobs += [job(root, name, "fsdp2", train__compile=True, **steps, **changes) for name, changes in CHANGES.items()]
    run_jobs(root, jobs)
    return root


@pytest.mark.parametrize("name", CHANGES)
def test_compiled_layers_train_sharded_as_eager_ones_in_one_process(root: Path, name: str) -> None:
    is_low = name == "low"
    found, expected = losses_of(root / name), losses_of(root / ("one-low" if is_low else "one"))
    assert list(found) == list(range(1, STEPS + 1))
    assert_near(found, expected, 5e-3 if is_low else 1e-5)
