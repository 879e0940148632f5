"""The whole plan says what it can even where a step can't be followed, and a 70 B teacher on 64 GPUs has an answer."""

import json

import pytest

from lrc.clone.sites import Variant
from lrc.config import CHECKPOINTING, ObjectiveConfig
from lrc.models.discovery import discover
from lrc.plan import memory
from lrc.plan.devices import parse_machine
from lrc.plan.run_costs import RunShape
from lrc.plan.sizes import measure_sizes
from lrc.plan.whole import Planner, plan_to_dict
from tests.models.tiny_configs import tiny_config
from tests.plan.published import llama_3_70b

SHAPE = RunShape(
    objective=ObjectiveConfig(),
    sequence=2048,
    batch=1,
    accumulation=1,
    merge="auto",
    optimizer="adamw",
    masked=False,
    tokens=20e9,
    checkpoints=2,
    mfu=0.25,
)


def test_a_70b_teacher_on_64_gpus_needs_its_weights_split() -> None:
    config = llama_3_70b()
    sizes = measure_sizes(config, discover(config), Variant(), 4096)
    machine = parse_machine("64xh100")
    plan = Planner(sizes, SHAPE, wanted_dtype="auto").plan(machine, (machine,))
    fits = {(way.fit.strategy.name, way.fit.checkpointing): way.fit.largest_batch for way in plan.ways}
    # the teacher alone is 141 GB in bfloat16: what keeps it whole fits nowhere
    assert all(fits[name, again] == 0 for name in ("DDP", "ZeRO-1", "ZeRO-2") for again in CHECKPOINTING)
    assert fits["FSDP2", "none"] == fits["ZeRO-3", "none"] == 0  # 69 GB of merged weights on each
    assert fits["FSDP2", "layer"] > fits["FSDP2", "selective"] > 0
    (offer,) = plan.offers
    assert offer.fit is not None
    assert offer.fit.checkpointing == "selective"  # the first that fits
    assert offer.pace is not None
    assert offer.pace.hours > 0


def test_a_step_that_needs_values_leaves_the_rest_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("which expert?")

    monkeypatch.setattr(memory, "trace_step", fail)
    config = tiny_config("llama")
    sizes = measure_sizes(config, discover(config), Variant(), 16)
    plan = Planner(sizes, SHAPE, wanted_dtype="auto").plan(parse_machine("h100"), ())
    assert plan.problem == "RuntimeError: which expert?"
    assert plan.ways == ()
    values = json.loads(json.dumps(plan_to_dict(plan)))
    assert values["memory_problem"] == plan.problem
    assert values["flops_per_token_without_checkpointing"] > 0
    assert values["trained_parameters"] == sizes.trained_parameters
