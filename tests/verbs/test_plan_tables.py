"""The plan's tables: every cause has its row and column, numbers stand where they belong, and what fits is worded."""

import io
from dataclasses import fields, replace
from typing import Any

import pytest
from rich.console import Console

from lrc.clone.sites import Variant
from lrc.config import Checkpointing, ObjectiveConfig
from lrc.models.discovery import discover
from lrc.plan.devices import parse_machine
from lrc.plan.flops import StepFlops
from lrc.plan.inverse import HiddenSizeAnswer
from lrc.plan.memory import MemoryUse, Peak
from lrc.plan.run_costs import Disk, Fit, Pace, RunShape
from lrc.plan.sizes import measure_sizes
from lrc.plan.strategies import ONE_DEVICE
from lrc.plan.whole import Offer, Plan, Way
from lrc.teacher_config import TeacherWeightsConfig
from lrc.verbs.plan_tables import CAUSES, FLOPS_ROWS, HEADINGS, answer_lines, print_plan, short_name, verdict
from tests.models.tiny_configs import tiny_config

H100 = parse_machine("h100")
SHAPE = RunShape(
    objective=ObjectiveConfig(),
    sequence=10,
    batch=2,
    accumulation=1,
    merge="auto",
    optimizer="adamw",
    masked=False,
    tokens=5e9,
    checkpoints=3,
    mfu=0.25,
)


def fit(largest: int, *, checkpointing: Checkpointing = "none") -> Fit:
    return Fit(machine=H100, strategy=ONE_DEVICE, checkpointing=checkpointing, largest_batch=largest)


def way(found: Fit, gigabytes: float) -> Way:
    use = MemoryUse(**dict.fromkeys(CAUSES, gigabytes * 1e9 / 8))
    return Way(fit=found, peak=Peak(use=use, moment="head"))


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A plan of 20 positions a micro-batch, whose numbers are made up."""
    config = tiny_config("llama")
    flops = {name: 20e9 * number for number, name in enumerate(FLOPS_ROWS, 1)}  # 1 to 7 GFLOP a token: 28
    pace = Pace(batch=2, tokens_per_second=12_345.0, hours=6.789)
    return Plan(
        sizes=measure_sizes(config, discover(config), Variant(), 16),
        shape=SHAPE,
        machine=H100,
        flops=StepFlops(**flops, checkpointing=0),
        recomputed={"selective": 20e9 * 7, "layer": 20e9 * 14},
        optimizer_flops=0.0,
        head_gradient_bytes=3e9,
        ways=(way(fit(4), 16), way(fit(9, checkpointing="layer"), 800)),
        offers=(
            Offer(machine=H100, ways=(), fit=fit(4), pace=pace, full_pace=replace(pace, batch=4)),
            Offer(machine=parse_machine("4xh100"), ways=(), fit=None, pace=None, full_pace=None),
        ),
        disk=Disk(data=20e9, checkpoint=7e9, checkpoints=35e9, student=2e9),
    )


def printed(plan: Plan) -> list[str]:
    file = io.StringIO()
    print_plan(plan, Console(file=file, width=132, color_system=None))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def cells_of(lines: list[str], first: str) -> list[str]:
    (line,) = [line for line in lines if line.startswith(first)]
    return line.removeprefix(first).split()


def test_every_flop_and_every_byte_of_a_step_is_in_the_tables() -> None:
    assert {*FLOPS_ROWS, "checkpointing"} == {entry.name for entry in fields(StepFlops)}
    assert set(CAUSES) == {entry.name for entry in fields(MemoryUse)}
    assert len(CAUSES) == len(HEADINGS) == len(set(HEADINGS))


def test_flops_are_a_tokens_and_their_shares_leave_checkpointing_out(plan: Plan) -> None:
    lines = printed(plan)
    assert cells_of(lines, "teacher, layers forward") == ["1.00", "3.6", "%"]
    assert cells_of(lines, "heads of both, chunked") == ["7.00", "25.0", "%"]
    assert cells_of(lines, "sum") == ["28.00"]
    assert cells_of(lines, "selective checkpointing adds") == ["7.00", "25.0", "%"]
    assert cells_of(lines, "layer checkpointing adds") == ["14.00", "50.0", "%"]


def test_an_optimiser_s_products_have_a_line_where_there_are_some(plan: Plan) -> None:
    assert not any("adds" in line and "a step" in line for line in printed(plan))
    text = " ".join(printed(replace(plan, shape=replace(SHAPE, optimizer="muon"), optimizer_flops=29.5e12)))
    assert "muon adds 29.5 TFLOP a step, shared by the devices; the hours count them" in text


def test_memory_stands_by_cause_with_its_sum_and_the_most_rows(plan: Plan) -> None:
    plain, checkpointed = [line.split()[2:] for line in printed(plan) if line.startswith("1 device")]
    assert plain == [*["2.0"] * 8, "16.0", "head", "4"]
    assert checkpointed == ["+l", *["100.0"] * 8, "800.0", "head", "9"]
    none = replace(plan, ways=(way(fit(0), 16),))
    assert cells_of(printed(none), "1 device ")[-1] == "none"


def test_machines_have_both_paces_or_nothing_fits(plan: Plan) -> None:
    lines = printed(plan)
    assert cells_of(lines, f"{H100.title} ")[-6:] == ["2", "12,345", "6.79", "4", "12,345", "6.79"]
    assert "nothing fits" in next(line for line in lines if line.startswith(parse_machine("4xh100").title))


def test_the_disk_tells_how_many_checkpoints_are_counted(plan: Plan) -> None:
    text = " ".join(" ".join(printed(plan)).split())
    kept = "35 GB checkpoints (3 kept, the best one and one being written, 7 GB each)"
    assert f"disk: 20 GB token shards, {kept}, 2 GB student" in text


def test_a_step_that_can_t_be_followed_has_a_reason_in_place_of_memory(plan: Plan) -> None:
    text = " ".join(printed(replace(plan, ways=(), offers=(), problem="ValueError: [odd] ids")))
    assert "memory: not known, for a step can't be followed without values: ValueError: [odd] ids" in text
    assert "may be filled" not in text
    assert "disk: " in text


def test_a_held_teacher_is_named_with_its_place(plan: Plan) -> None:
    assert not any("matrices in" in line for line in printed(plan))
    held = TeacherWeightsConfig(format="int8", offload="cpu")
    first = printed(replace(plan, shape=replace(SHAPE, teacher_weights=held)))[0]
    assert first.endswith("its layers' matrices in int8, offloaded beside a GPU")


def test_the_verdict_is_the_first_way_that_takes_the_batch(plan: Plan) -> None:
    rows = "rows of 10 positions"
    assert verdict(plan) == f"fits: 1 device on {H100.title}, up to 4 {rows}"
    tight: Any = replace(plan, ways=(way(fit(1), 16), way(fit(9, checkpointing="layer"), 16)))
    assert verdict(tight) == f"fits: 1 device with layer checkpointing on {H100.title}, up to 9 {rows}"
    none = replace(plan, ways=(way(fit(0), 16),))
    assert verdict(none) == f"fits: nothing on {H100.title}, not even one row of 10 positions"


def test_a_way_with_checkpointing_is_marked() -> None:
    assert short_name(fit(1)) == "1 device"
    assert short_name(fit(1, checkpointing="layer")) == "1 device +l"
    assert short_name(fit(1, checkpointing="selective")) == "1 device +s"


def test_both_neighbours_of_an_asked_size_are_told() -> None:
    answer = HiddenSizeAnswer(exact=1537.26, nearest=((1536, 1_499_000_000), (1600, 1_560_000_000)))
    nearest = "1536 (1,499,000,000 parameters) and 1600 (1,560,000,000 parameters)"
    assert answer_lines(answer, 1.5e9) == [f"1.5 B parameters: hidden size 1537.3; nearest that work: {nearest}"]
