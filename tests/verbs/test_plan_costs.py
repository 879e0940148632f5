"""`lrc plan` prints what a run costs, for a recipe or a teacher, and answers questions backwards."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrc.cli import main
from lrc.config import CHECKPOINTING, load_recipe
from lrc.errors import ConfigError
from lrc.plan import memory
from lrc.plan.devices import parse_machine
from lrc.plan.step_trace import StepTrace
from lrc.plan.strategies import STRATEGIES
from lrc.verbs import plan_costs as module
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.tiny_configs import tiny_config
from tests.plan.published import Published, published_runs
from tests.plan.test_sizes import hand_count


@pytest.fixture(scope="module", autouse=True)
def _steps_are_followed_once() -> Iterator[None]:
    """Most tests here plan the same pair, and following its step is what a plan's seconds go to."""
    follow, known = memory.trace_step, dict[str, StepTrace]()

    def follow_once(*args: Any, **kwargs: Any) -> StepTrace:
        asked = repr((args, sorted(kwargs.items())))
        if asked not in known:
            known[asked] = follow(*args, **kwargs)
        return known[asked]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "trace_step", follow_once)
        yield


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tiny_config("llama").save_pretrained(tmp_path / "teacher")
    values: dict[str, Any] = {
        "run": str(tmp_path / "run"),
        "teacher": str(tmp_path / "teacher"),
        "student": {"hidden_size": 16},
        "data": {"train": "nothing.jsonl", "sequence_length": 32},
        "train": {"max_steps": 100, "batch_size": 4},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def planned(arguments: list[str], out: Path) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_a_recipe_is_planned_from_its_teachers_config_alone(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned([str(recipe), "train.batch_size=2"], tmp_path / "plan.json")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("teacher    llama, hidden size 32")
    assert said[-2].startswith("fits: DDP on 8 x H100 80 GB, up to ")
    assert said[-1] == "supported: llama"
    assert [line.split(":")[0] for line in said if line.startswith("size ")] == [
        "size       hidden size 16 is no multiple of 32",
        "size       nearest good hidden sizes",
        "size       heads x head size 24 is the teacher's, and no multiple of 32",
        "size       FFN width 56 is the teacher's, and no multiple of 32",
    ]
    assert max(map(len, said)) <= 132
    assert len(said) <= 55  # a screen
    assert plan["tokens"] == 100 * 2 * 32 * 8
    assert plan["batch_size"] == 2
    assert not (tmp_path / "run").exists()
    ways = [(way["strategy"], way["activation_checkpointing"]) for way in plan["memory_per_device"]]
    assert ways == [(name, again) for name in ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP2") for again in CHECKPOINTING]
    for way in plan["memory_per_device"]:
        causes = dict(way["bytes"])
        assert causes.pop("total") == pytest.approx(sum(causes.values()))
    assert {offer["machine"] for offer in plan["machines"]} >= {"8 x H100 80 GB", "1 x RTX 4090 24 GB"}
    assert all(offer["hours"] > 0 for offer in plan["machines"])
    (same,) = (offer for offer in plan["machines"] if offer["machine"] == plan["machine"])
    assert same["memory_per_device"] == plan["memory_per_device"]
    assert same["usable_bytes_per_device"] == plan["usable_bytes_per_device"]
    (small,) = (offer for offer in plan["machines"] if offer["machine"] == "1 x RTX 4090 24 GB")
    assert len({way["strategy"] for way in small["memory_per_device"]}) == 1
    assert all(way["bytes"]["teacher"] > 0 for way in small["memory_per_device"])


@pytest.mark.parametrize(("correction", "matrices"), [("outputs", 1), ("mlp", 3)])
def test_corrections_are_counted_and_leave_zero_out(
    correction: str, matrices: int, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned([str(recipe), f"student.correction={correction}"], tmp_path / "plan.json")
    values = matrices * 2 * 16 * 56  # two layers, the student's width times the FFN's
    assert plan["correction_parameters"] == values
    trained = f"trained    {plan['trained_parameters']:,} parameters, beside {values:,} of fixed corrections"
    assert trained in capsys.readouterr().out.splitlines()
    assert {way["strategy"] for way in plan["memory_per_device"]} == {"DDP", "FSDP2"}
    assert planned([str(recipe)], tmp_path / "plain.json")["correction_parameters"] == 0


def test_a_teachers_listing_stays_and_the_plan_is_added(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned([str(tmp_path / "teacher"), "--hidden-size", "16", "--on", "h100"], tmp_path / "plan.json")
    said = capsys.readouterr().out
    assert "readers    model.layers.*.self_attn.q_proj.weight x 2" in said
    assert said.count("size       hidden size 16 is no multiple of 32") == 1
    assert "fits: 1 device on 1 x H100 80 GB" in said
    assert said.splitlines()[-1].startswith("supported: llama")
    assert plan["student"]["hidden_size"] == 16


def test_parameters_are_answered_with_a_hidden_size(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = planned([str(recipe)], tmp_path / "known.json")["student"]["parameters"]
    capsys.readouterr()
    plan = planned([str(recipe), "--params", str(known), "--on", "h100"], tmp_path / "plan.json")
    assert "hidden size 16.0; nearest that work: 16 (" in capsys.readouterr().out
    assert plan["student"] == {"hidden_size": 16, "parameters": known}


def test_a_size_of_memory_is_answered_with_the_largest_hidden_size(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned([str(tmp_path / "teacher"), "--fits", "24GB"], tmp_path / "plan.json")
    said = capsys.readouterr().out
    assert "1 x 24 GB, 1 device: hidden size up to 28 (one row of " in said
    assert plan["student"]["hidden_size"] == 28
    assert main(["plan", str(tmp_path / "teacher"), "--fits", "0.001GB"]) == 0
    assert "no student" in capsys.readouterr().out


def hand_hours(run: Published, tokens: float, positions: int, sequence: int) -> float:
    """Count the hours on 8 x H100 at 25 % of their peak, from METHOD's definition.

    A token costs 2 FLOPs a teacher weight, 6 a student weight, and attention's scores over the whole sequence; merging
    costs 2 FLOPs a product of teacher weight and student channel, once forward and once for the projections' gradient,
    shared by a micro-batch's positions.
    """
    student, _ = hand_count(run)
    config, ratio = run.config, run.config.hidden_size / run.d_student
    teacher = student * ratio  # but for the gains: every matrix has one hidden axis
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4 * sequence * config.num_attention_heads * size * config.num_hidden_layers
    embedding = 0 if config.tie_word_embeddings else config.vocab_size
    forward = 2 * (teacher - embedding * config.hidden_size) + attention
    trained = 3 * (2 * (student - embedding * run.d_student) + attention)
    merges = 4 * teacher * run.d_student / positions
    return tokens * (forward + trained + merges) / (8 * 989e12 * 0.25) / 3600


@pytest.mark.slow
@pytest.mark.parametrize("run", published_runs(), ids=lambda run: run.recipe)
def test_published_recipes_have_the_published_sizes_and_hours(
    run: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = parse_machine("8xh100")
    monkeypatch.setattr(module, "usual_machines", lambda: (machine,))
    run.config.save_pretrained(tmp_path / "teacher")
    arguments = [f"configs/recipes/{run.recipe}.yaml", f"teacher={tmp_path / 'teacher'}", "--on", "8xh100"]
    plan = planned(arguments, tmp_path / "plan.json")
    counts = (plan["student"]["parameters"], plan["trained_parameters"])
    assert counts == hand_count(run)
    said = capsys.readouterr().out
    assert all(f"{count:,} parameters" in said for count in counts)
    (offer,) = [offer for offer in plan["machines"] if offer["machine"] == "8 x H100 80 GB"]
    sequence, positions = plan["sequence_length"], plan["sequence_length"] * plan["batch_size"]
    assert offer["activation_checkpointing"] == "none"
    assert offer["hours"] == pytest.approx(hand_hours(run, plan["tokens"], positions, sequence), rel=0.1)
    if run.student is not None and run.trained is not None and run.hours is not None:
        assert tuple(round(count / 1e9, 2) for count in counts) == (run.student, run.trained)
        # the share of the peak is taken from the first run
        assert offer["hours"] == pytest.approx(run.hours, rel=0.02 if run.recipe == "lrc_1.5b" else 0.2)


@pytest.mark.parametrize(
    ("overrides", "offered"),
    [
        (("train.optimizer=muon",), {"DDP", "FSDP2"}),
        (("train.rate_shares.down_proj=0.5",), {"DDP", "FSDP2"}),
        (("train.compile=true",), {"DDP", "FSDP2"}),
        (("phases.dense_share=0.5",), {"DDP"}),
        (("phases.dense_share=1",), {"DDP", "FSDP2"}),
        (("student.correction=mlp",), {"DDP", "FSDP2"}),
        ((), {"DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP2"}),
    ],
)
def test_strategies_that_training_refuses_are_known(
    recipe: Path, overrides: tuple[str, ...], offered: set[str]
) -> None:
    names = {strategy.name for strategy in STRATEGIES}
    assert names - module._refused(load_recipe(recipe, overrides)) == offered


def test_ways_that_training_refuses_are_not_offered(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "usual_machines", tuple)  # the one that is asked for is enough
    monkeypatch.setattr(module, "allowed_sizes", lambda config: [16])
    plan = planned([str(recipe), "--fits", "8x24GB", "train.optimizer=muon"], tmp_path / "plan.json")
    lines = [line for line in capsys.readouterr().out.splitlines() if "(one row of 32 positions)" in line]
    assert {line.split(", ")[1].split(" with ")[0].split(":")[0] for line in lines} == {"DDP", "FSDP2"}
    assert {way["strategy"] for way in plan["memory_per_device"]} == {"DDP", "FSDP2"}
    assert {way["strategy"] for offer in plan["machines"] for way in offer["memory_per_device"]} == {"DDP", "FSDP2"}


def test_a_dense_phase_of_a_held_teacher_is_refused_as_in_training(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(recipe), "phases.dense_share=0.5", "teacher_weights.format=int8"]) == 2
    assert "teacher_weights holds a teacher that is merged to the end" in capsys.readouterr().err


@pytest.mark.slow
def test_an_offloaded_teacher_is_planned_whole_on_every_device(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned([str(recipe), "teacher_weights={format: nf4, offload: cpu}"], tmp_path / "plan.json")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("teacher    llama, hidden size 32")
    assert said[0].endswith("; its layers' matrices in nf4, offloaded beside a GPU")
    assert plan["teacher_weights"] == {"format": "nf4", "offload": "cpu"}
    ways = [name for name in ("DDP", "ZeRO-1", "ZeRO-2") for _ in CHECKPOINTING]
    assert [way["strategy"] for way in plan["memory_per_device"]] == ways
    assert plan["memory_problem"] is None


def test_a_size_that_fits_is_not_sought_where_a_step_can_t_be_followed(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("which expert?")

    monkeypatch.setattr(memory, "trace_step", fail)
    assert main(["plan", str(recipe), "--fits", "24GB"]) == 2
    error = capsys.readouterr().err
    assert "--fits needs the memory of a step, which can't be followed without values for llama: RuntimeError" in error
    assert "Ask for a size with --hidden-size or --params" in error


def test_code_of_the_teacher_runs_for_a_recipe_too_if_the_flag_allows_it(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted: list[bool] = []

    def refuse(*args: object, trust_remote_code: bool) -> None:
        trusted.append(trust_remote_code)
        raise ConfigError("enough")

    monkeypatch.setattr(module, "load_config", refuse)
    assert main(["plan", str(recipe)]) == main(["plan", str(recipe), "--trust-remote-code"]) == 2
    assert trusted == [False, True]


def test_stacked_experts_that_are_to_be_held_end_with_exit_code_2(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FAMILY_CONFIGS["qwen3_moe"]().save_pretrained(tmp_path / "teacher")
    assert main(["plan", str(recipe), "teacher_weights.format=int8"]) == 2
    assert "stacked experts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "needs the student's size"),
        (["--hidden-size", "16", "--on", "8xpotato"], "A machine must look like"),
        (["--hidden-size", "16", "--mfu", "2"], "--mfu is a share"),
        (["--hidden-size", "16", "--tokens", "lots"], "--tokens must be a number above 0"),
        (["--params", "70B"], "--params must lie between"),
        (["--hidden-size", "16", "student.hiden_size=3"], "hiden_size"),
        (["--hidden-size", "16", "train.batch_size"], "must look like section.key=value, found 'train.batch_size'"),
        (["--hidden-size", "16", "train.batch_size=[1"], "can't be read as section.key=value"),
        (["--hidden-size", "0"], "--hidden-size must be at least 1, found 0"),
        (["--hidden-size", "-8"], "--hidden-size must be at least 1, found -8"),
        (["--fits", "24GB", "--on", "8xh100"], "--fits and --on ask for two things, found --fits 24GB and --on 8xh100"),
        (["--fits", "24GB", "--params", "1M"], "--fits and --params ask for two things"),
        (["--params", "1M", "--hidden-size", "16"], "--params and --hidden-size ask for two things"),
    ],
)
def test_bad_questions_end_with_the_reason_and_exit_code_2(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main(["plan", str(tmp_path / "teacher"), *arguments]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("content", ["mine", "{}", '{"machines": []}', "[]", None])
def test_json_replaces_an_earlier_plan_and_nothing_else(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    out = tmp_path / "plan.json"
    if content is None:
        planned([str(recipe)], out)
        planned([str(recipe)], out)
        return
    out.write_text(content)
    assert main(["plan", str(recipe), "--json", str(out)]) == 2
    assert f"--json {out} is there and is no plan of lrc" in capsys.readouterr().err
    assert out.read_text() == content


def test_a_dense_phase_is_counted_and_a_student_from_scratch_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "usual_machines", tuple)  # the one that is asked for is enough
    alone = planned([str(recipe), "--on", "24GB"], tmp_path / "alone.json")
    capsys.readouterr()
    plan = planned([str(recipe), "--on", "24GB", "phases.dense_share=0.25"], tmp_path / "plan.json")
    # attention's 4 projections, embedding's and head's, 5 gains, 3 MLP weights of 56 neurons
    values = 2 * 4 * 32 * 16 + 2 * 32 * 16 + 5 * 16 + 2 * 3 * 56 * 16
    said = " ".join(capsys.readouterr().out.split())
    start = f"phases the last 25% of the steps train {values:,} values (mlp, replace); all else"
    assert f"{start} counts the phase of projections, but memory, rows and checkpoints the larger phase" in said
    assert "fits: 1 device on 1 x 24 GB" in said
    # a value of the larger phase takes a weight, two moments and, at the step's end, a gradient
    assert plan["disk_bytes"]["checkpoint"] == 12 * max(values, plan["trained_parameters"])
    assert plan["disk_bytes"]["checkpoint"] > alone["disk_bytes"]["checkpoint"] == 12 * alone["trained_parameters"]
    uses = [found["memory_per_device"][0]["bytes"] for found in (alone, plan)]
    frozen = 2 * 32 * 16  # the clone terms of MLP outputs need their projections still
    assert [use["optimizer"] for use in uses] == [8 * plan["trained_parameters"], 8 * values]
    assert [use["projections"] for use in uses] == [4 * plan["trained_parameters"], 4 * (values + frozen)]
    assert main(["plan", str(recipe), "method=only_kd"]) == 2
    assert "counts what method = clone trains and costs, found method = only_kd" in capsys.readouterr().err
