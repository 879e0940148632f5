"""The phases of a run: free weights train as a plain model does, a resumed run goes over at the same step, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lrc.config import Recipe
from lrc.data.folder_hash import write_sums
from lrc.errors import ConfigError
from lrc.models.dense import FROM_SCRATCH, Dense
from lrc.models.discovery import discover
from lrc.models.student import student_config
from lrc.models.teacher import load_config
from lrc.training import loop
from lrc.training.phases import check_phase, check_rates, check_strategy, plan_phases
from lrc.verbs.convert import convert
from lrc.verbs.train import train
from tests.tiny import tiny_recipe
from tests.training.plain_loop import plain_training

STEPS, SWITCH = 6, 3


def phased(root: Path, run: str = "run", **changes: Any) -> Recipe:
    """A run of projections for its first half, of free weights for its second; every step is saved."""
    return tiny_recipe(
        root,
        run=str(root / run),
        **{
            "start__method": "random",
            "objective__lm_weight": 0.5,
            "phases__dense_share": 0.5,
            "train__max_steps": STEPS,
            "train__save_steps": 1,
            "train__seed": 1,
            **changes,
        },
    )


def checkpoint(recipe: Recipe, step: int) -> Path:
    return Path(recipe.run) / "train" / f"checkpoint-{step}"


def stock(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def test_a_dense_phase_trains_as_a_plain_loop_trains_the_merged_model(tmp_path: Path) -> None:
    recipe = phased(tmp_path, phases__dense_tensors="all", objective__clone_weight=0.0, train__warmup_ratio=0.0)
    train(recipe)
    teacher = stock(Path(recipe.teacher))
    student = stock(convert(checkpoint(recipe, SWITCH), tmp_path / "merged", dtype="float32"))
    theirs = dict(teacher.named_parameters())
    free = {
        f"{'gains' if value.dim() == 1 else 'dense'}.{name}": value
        for name, value in student.named_parameters()
        if name not in theirs or value.shape != theirs[name].shape
    }
    gains = load_file(checkpoint(recipe, SWITCH) / "optimizer.safetensors")  # the projections' moments are of no use
    plain_training(recipe, teacher, student, free=free, steps=range(SWITCH, STEPS), moments=gains)
    found = load_file(checkpoint(recipe, STEPS) / "model.safetensors")
    assert {name for name in found if not name.startswith("projections.")} == set(free)
    for name, value in free.items():
        torch.testing.assert_close(found[name], value.detach(), rtol=0, atol=1e-6, msg=name)


def test_a_share_of_one_is_dense_from_the_first_step(tmp_path: Path) -> None:
    recipe = phased(tmp_path, phases__dense_share=1.0, start__method="channel")
    train(recipe)
    facts = json.loads((checkpoint(recipe, 1) / "lrc_config.json").read_text())
    assert (facts["method"], facts["phase"]) == ("clone", {"tensors": "mlp", "form": "replace"})
    names = set(load_file(checkpoint(recipe, 1) / "model.safetensors"))
    assert "dense.model.layers.0.mlp.up_proj.weight" in names
    assert "projections.model.layers.0.mlp.up_proj" not in names  # nothing is merged with it any more
    assert {"projections.model.layers.0.mlp.down_proj", "projections.model.layers.0.self_attn.q_proj"} <= names


PHASES = [
    {"phases__dense_tensors": "mlp"},
    {"phases__dense_tensors": "all", "train__optimizer": "muon", "phases__dense_learning_rate": 3e-3},
    {"phases__dense_form": "complement", "train__optimizer": "muon"},
    {"phases__dense_tensors": "all", "phases__dense_form": "complement", "student__tie_embedding_projection": True},
    {"phases__dense_share": 1.0, "phases__dense_form": "complement", "train__optimizer": "muon"},
]


@pytest.mark.parametrize("changes", PHASES, ids=lambda changes: " ".join(map(str, changes.values())))
def test_a_run_killed_before_in_and_after_the_switch_ends_bit_equal(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = phased(tmp_path, "whole", **changes)
    train(whole)
    for step in (SWITCH - 1, SWITCH, SWITCH + 1):
        recipe = phased(tmp_path, f"from-{step}", **changes)
        shutil.copytree(checkpoint(whole, step), checkpoint(recipe, step))
        train(recipe, resume="auto")
        for name in ("model.safetensors", "optimizer.safetensors"):
            ends = [(checkpoint(run, STEPS) / name).read_bytes() for run in (whole, recipe)]
            assert ends[0] == ends[1], (step, name)


@pytest.mark.parametrize("changes", PHASES[:4], ids=lambda changes: " ".join(map(str, changes.values())))
def test_a_checkpoint_of_free_weights_becomes_a_plain_folder_of_the_clone_s_shape(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    recipe = phased(tmp_path, **changes)
    train(recipe)
    out = convert(checkpoint(recipe, STEPS), tmp_path / "student")
    assert json.loads((out / "parity.json").read_text())["passed"]
    teacher, tied = stock(Path(recipe.teacher)), recipe.student.tie_embedding_projection
    shape = student_config(teacher.config, 16, tied=tied and teacher.config.tie_word_embeddings)
    expected = dict(AutoModelForCausalLM.from_config(shape).named_parameters())
    found = load_file(out / "model.safetensors")
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in expected.items()
    }


def test_what_stays_keeps_its_moments_and_what_is_new_counts_from_one(tmp_path: Path) -> None:
    recipe = phased(tmp_path)
    train(recipe)
    moments = load_file(checkpoint(recipe, SWITCH + 1) / "optimizer.safetensors")
    steps = {name.removeprefix("step/"): float(value) for name, value in moments.items() if name.startswith("step/")}
    free = {name: count for name, count in steps.items() if name.startswith("dense.")}
    assert len(free) == 6
    assert set(free.values()) == {1.0}
    assert {count for name, count in steps.items() if name not in free} == {SWITCH + 1.0}


def test_the_clone_loss_of_mlp_outputs_goes_on_with_the_last_projection_frozen(tmp_path: Path) -> None:
    recipe = phased(tmp_path, train__log_steps=1)
    train(recipe)
    name = "projections.model.layers.1.mlp.down_proj"
    values = [load_file(checkpoint(recipe, step) / "model.safetensors")[name] for step in (SWITCH - 1, SWITCH, STEPS)]
    assert not torch.equal(values[0], values[1])
    assert torch.equal(values[1], values[2])
    lines = [json.loads(line) for line in (Path(recipe.run) / "train" / "metrics.jsonl").read_text().splitlines()]
    terms = [line["clone"]["mlp-out"] for line in lines if line["kind"] == "train"]
    assert all(value > 0 for term in terms for value in term)


def test_a_rate_of_its_own_scales_the_free_weights_steps_only(tmp_path: Path) -> None:
    runs = [phased(tmp_path, str(rate), phases__dense_learning_rate=rate) for rate in (1e-3, 1e-30)]
    for recipe in runs:
        train(recipe)
    usual, still = (load_file(checkpoint(recipe, SWITCH + 1) / "model.safetensors") for recipe in runs)
    merged = load_file(convert(checkpoint(runs[1], SWITCH), tmp_path / "m", dtype="float32") / "model.safetensors")
    for name, value in still.items():
        if name.startswith("dense."):
            torch.testing.assert_close(value, merged[name.removeprefix("dense.")])
            assert not torch.equal(value, usual[name])
        else:
            assert torch.equal(value, usual[name]), name


def test_a_rollback_goes_back_over_the_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[int] = []

    def once(settings: Any, state: Any, **_: float) -> str | None:
        if state.step == SWITCH + 1 and not refused:
            refused.append(state.step)
            return "made up"
        return None

    monkeypatch.setattr(loop, "find_divergence", once)
    recipe = phased(tmp_path, train__save_steps=2, train__on_divergence="rollback", train__evaluate_steps=100)
    last = train(recipe)  # goes back from step 4 to checkpoint-2, of projections
    assert refused == [SWITCH + 1]
    assert json.loads((last / "state.json").read_text())["skipped_batches"] == [SWITCH + 1]
    monkeypatch.undo()
    again = phased(tmp_path, "again", train__save_steps=2)
    shutil.copytree(checkpoint(recipe, 2), checkpoint(again, 2))
    state = json.loads((checkpoint(again, 2) / "state.json").read_text())
    (checkpoint(again, 2) / "state.json").write_text(json.dumps({**state, "skipped_batches": [SWITCH + 1]}))
    write_sums(checkpoint(again, 2))
    train(again, resume="auto")
    ends = [load_file(checkpoint(run, STEPS) / "model.safetensors") for run in (recipe, again)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_phases_are_read_off_the_recipe(tmp_path: Path) -> None:
    assert plan_phases(phased(tmp_path, phases__dense_share=0.0)).dense is None
    scratch = plan_phases(phased(tmp_path, method="only_kd", phases__dense_share=0.0))
    assert (scratch.dense, scratch.first_step) == (FROM_SCRATCH, 0)
    phases = plan_phases(phased(tmp_path, phases__dense_learning_rate=2e-3))
    assert phases.rate_share == pytest.approx(2.0)
    dense = Dense(tensors="mlp")
    assert [phases.at(step, None) for step in (0, SWITCH - 1, SWITCH)] == [None, None, dense]
    assert phases.at(0, dense) == dense


def test_a_resumed_run_does_not_make_free_weights_projections_again(tmp_path: Path) -> None:
    recipe = phased(tmp_path)
    train(recipe)
    for changes in ({"phases__dense_share": 0.0}, {"phases__dense_form": "complement"}):
        with pytest.raises(ConfigError, match="can't be made projections again"):
            train(phased(tmp_path, **changes), resume=str(checkpoint(recipe, STEPS)))
    other = phased(tmp_path, method="only_kd", phases__dense_share=0.0)
    with pytest.raises(ConfigError, match="trains a student from scratch"):
        train(other, resume=str(checkpoint(recipe, SWITCH)))
    check_phase(Dense(tensors="mlp"), plan_phases(recipe), SWITCH + 1, origin="it")


def test_shares_of_the_rate_hold_before_and_after_the_switch(tmp_path: Path) -> None:
    shares = {"gains": 0.0, "down_proj": 0.0}
    recipe = phased(tmp_path, train__optimizer="muon", train__rate_shares=shares)
    train(recipe)
    first, half, last = (load_file(checkpoint(recipe, step) / "model.safetensors") for step in (1, SWITCH, STEPS))
    for name in half:
        stays = name.startswith("gains.") or ".down_proj" in name
        assert torch.equal(first[name], half[name]) == stays, name
    student = stock(convert(checkpoint(recipe, SWITCH), tmp_path / "merged", dtype="float32"))
    merged = dict(student.named_parameters())
    free = {name.removeprefix("dense."): value for name, value in last.items() if name.startswith("dense.")}
    assert len(free) == 3 * len(student.model.layers)
    for name, value in free.items():
        assert torch.allclose(value, merged[name], atol=1e-7) == (".down_proj" in name), name


def test_shares_are_checked_against_what_any_phase_trains(tmp_path: Path) -> None:
    shared = {"student__ffn_projections": "io", "train__rate_shares": {"gate_proj": 0.5, "input": 0.5}}
    recipe = phased(tmp_path, **shared)  # one projection for gate and up, and free weights of each
    architecture = discover(load_config(recipe.teacher))
    check_rates(recipe, architecture)
    for changes in ({"phases__dense_share": 0.0}, {"phases__dense_share": 1.0}):
        with pytest.raises(ConfigError, match=r"no trained tensor is called: (gate_proj|input)"):
            check_rates(phased(tmp_path, **{**shared, **changes}), architecture)
    scratch = {"method": "tiny_bert", "phases__dense_share": 0.0}
    check_rates(phased(tmp_path, **scratch, train__rate_shares={"alignment": 0.5, "dense": 2.0}), architecture)
    with pytest.raises(ConfigError, match="no trained tensor is called: projections"):
        check_rates(phased(tmp_path, **scratch, train__rate_shares={"projections": 0.5}), architecture)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("fsdp2", {}),
        ("zero2", {}),
        ("zero3", {"phases__dense_share": 1.0}),
        ("fsdp2", {"phases__dense_share": 0.0, "method": "tiny_bert"}),
        ("zero3", {"phases__dense_share": 0.0, "train__compile": True}),
        ("zero1", {"phases__dense_share": 0.0, "train__compile": True}),
        ("zero2", {"phases__dense_share": 0.0, "train__rate_shares": {"gains": 0.5}}),
    ],
)
def test_strategies_that_can_t_follow_are_refused(tmp_path: Path, strategy: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"strategy {strategy} can't.*train\.strategy=ddp"):
        check_strategy(phased(tmp_path, **changes), strategy)
    check_strategy(phased(tmp_path, **changes), "ddp")
    check_strategy(phased(tmp_path, phases__dense_share=1.0), "fsdp2")
    check_strategy(phased(tmp_path, phases__dense_share=0.0, method="only_kd"), "zero3")
    check_strategy(phased(tmp_path, phases__dense_share=0.0, train__rate_shares={"gains": 1.0}), "zero3")
