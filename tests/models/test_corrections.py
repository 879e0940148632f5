"""Fixed corrections beside merges: what a student is with them, what a start makes of them, what later phases do."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lrc.clone.sites import Stage, Variant, corrected_weights
from lrc.config import ObjectiveConfig
from lrc.data.folder_hash import write_sums
from lrc.errors import CheckpointError, ConfigError, NumericsError
from lrc.export.convert import read_source
from lrc.models import tune
from lrc.models.dense import Dense
from lrc.models.merge_plan import check_corrected, check_free, check_trained, merge_plan, student_tensor
from lrc.models.oracles import merged_student
from lrc.models.pair_model import PairModel, StepCounts
from lrc.models.rotate import random_rotation, rotate_student
from lrc.models.start import fill_start
from lrc.models.step_weights import StepWeights
from lrc.models.tiny import random_model
from lrc.start_config import StartConfig
from lrc.training.phases import check_strategy
from lrc.verbs.convert import convert
from lrc.verbs.train import train
from lrc.verbs.train_start import FEW_TOKENS, corrected_in_words
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.stock_student import recorded, stock_student
from tests.models.test_layer_fit import id_batches
from tests.models.test_pair import batch, fill_random, make_pair
from tests.tiny import tiny_recipe, tiny_teacher

CORRECTED = Variant(correction="outputs")
TUNED = Variant(correction="mlp")
EITHER = pytest.mark.parametrize("variant", [CORRECTED, TUNED], ids=["outputs", "mlp"])
IDS = torch.randint(4, 48, (2, 20), generator=torch.Generator().manual_seed(1))
DOWN = "model.layers.1.mlp.down_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def corrected_pair(family: str = "llama", variant: Variant = CORRECTED) -> PairModel:
    pair = make_pair(tiny_teacher(family), 16, variant).eval()
    fill_random(pair)
    fill_corrections(pair)
    return pair


@torch.no_grad()
def fill_corrections(pair: PairModel) -> None:
    generator = torch.Generator().manual_seed(7)
    for name, value in pair.stored().items():
        if name.startswith("corrections."):
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))


def corrections(pair: PairModel) -> dict[str, Tensor]:
    return {name: value for name, value in pair.stored().items() if name.startswith("corrections.")}


def stage(kind: str, **more: object) -> Stage:
    given = {"readers": ("up",), "writers": ("down",), "norm": "norm", "post_norm": None} | more
    return Stage(kind=kind, **given)  # type: ignore[arg-type]


def test_an_mlp_with_a_single_writer_is_corrected_and_nothing_else() -> None:
    assert corrected_weights(stage("mlp"), CORRECTED) == {"down.weight": 0}
    assert corrected_weights(stage("mlp"), TUNED) == {"down.weight": 0, "up.weight": 1}
    assert corrected_weights(stage("mlp"), Variant()) == {}
    for variant in (CORRECTED, TUNED):
        assert corrected_weights(stage("attn"), variant) == {}
        assert corrected_weights(stage("mlp", writers=("down", "other")), variant) == {}
        assert corrected_weights(stage("mlp", bare=(("down", "experts"),)), variant) == {}


@EITHER
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3"])
def test_the_student_is_the_merged_one_with_the_corrections_added(family: str, variant: Variant) -> None:
    pair = corrected_pair(family, variant)
    teacher = tiny_teacher(family)
    ours = pair.logits(IDS)[0].detach()
    stock = stock_student(pair, teacher)
    torch.testing.assert_close(stock(input_ids=IDS).logits, ours, rtol=1e-4, atol=1e-4)
    plan, stored = merge_plan(pair.architecture, variant), pair.stored()
    assert len(plan.corrections) == 2 * (1 if variant == CORRECTED else 3)
    theirs = dict(stock.named_parameters())
    for name in plan.corrections:
        exported = student_tensor(plan, name, teacher.get_parameter(name), stored)
        torch.testing.assert_close(exported, theirs[name], rtol=1e-5, atol=1e-5)
    for value in corrections(pair).values():
        value.data.zero_()
    assert float((pair.logits(IDS)[0].detach() - ours).abs().max()) > 0.01


@EITHER
def test_training_moves_projections_and_leaves_corrections(variant: Variant) -> None:
    pair = corrected_pair(variant=variant).train()
    assert not any(name.startswith("corrections.") for name in pair.trained())
    assert not any(value.requires_grad for value in corrections(pair).values())
    ids, labels, valid = batch()
    counts = StepCounts(labels=int((labels != -100).sum()), positions=ids.numel(), sequences=len(ids))
    pair(ids, labels, valid, counts).objective.backward()
    direct = {name: value.grad.clone() for name, value in pair.trained().items() if value.grad is not None}
    pair.zero_grad()
    shares = StepWeights(pair)
    shares.form()
    pair(ids, labels, valid, counts).objective.backward()
    shares.pull_back()
    assert set(direct) == set(pair.trained())
    for name, value in pair.trained().items():
        torch.testing.assert_close(value.grad, direct[name], rtol=1e-4, atol=1e-5)
    before = {name: value.detach().clone() for name, value in pair.stored().items()}
    torch.optim.AdamW(pair.parameters(), lr=0.1).step()
    moved = {name for name, value in pair.stored().items() if not torch.equal(value, before[name])}
    assert moved == set(pair.trained())


@torch.no_grad()
def test_a_calibrated_start_with_corrections_is_nearer_to_the_teacher_on_other_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune, "STEP_TOKENS", 256)  # sixty steps
    streams = []
    for variant in (Variant(), CORRECTED, TUNED):
        teacher = tiny_teacher("llama")
        pair = make_pair(teacher, 16, variant)
        fill_start(pair, teacher, StartConfig(basis="principal", rotation=False), id_batches(240), seed=0)
        streams.append([pair.eval().hidden_states(ids, None)[:2] for ids in id_batches(20, seed=11)])
    errors = []
    for found in streams:  # of the last state, after the best linear reader of each
        ours, theirs = (torch.cat([pair[side].flatten(0, 1) for pair in found]).double() for side in (0, 1))
        left = theirs - ours @ torch.linalg.lstsq(ours, theirs).solution
        errors.append(float(left.square().sum() / theirs.square().sum()))
    assert errors[2] < errors[1] < errors[0]


def test_a_tuned_start_leaves_no_gradients_and_the_student_that_it_reports() -> None:
    teacher = tiny_teacher("llama")
    pair = make_pair(teacher, 16, TUNED)
    fill_start(pair, teacher, StartConfig(basis="principal"), id_batches(6), seed=0)
    assert all(parameter.grad is None for parameter in pair.parameters())
    assert all(parameter.requires_grad for parameter in pair.trained().values())


@pytest.mark.parametrize("worse", [True, False])
def test_weights_that_are_no_better_are_not_taken_and_such_that_are_no_numbers_end_the_start(
    monkeypatch: pytest.MonkeyPatch, worse: bool
) -> None:
    def spoilt(weights: dict[str, Tensor], *_: object, **__: object) -> dict[str, Tensor]:
        return {name: weight + (10.0 if worse else torch.nan) for name, weight in weights.items()}

    monkeypatch.setattr("lrc.models.layer_fit.tuned", spoilt)
    teacher, found = tiny_teacher("llama"), {}
    for variant in (CORRECTED, TUNED):
        pair = make_pair(teacher, 16, variant)
        fill = partial(fill_start, pair, teacher, StartConfig(basis="principal"), id_batches(6), seed=0)
        if variant == TUNED and not worse:
            with pytest.raises(NumericsError, match=r"model\.layers\.0\.mlp can't be tuned: .* nan after 2 passes"):
                fill()
            return
        fill()
        found[variant.correction] = pair.stored()
    for name, value in found["mlp"].items():
        expected = found["outputs"].get(name)
        assert torch.equal(value, torch.zeros_like(value) if expected is None else expected), name


@EITHER
def test_a_second_start_forgets_the_first_ones_corrections(variant: Variant) -> None:
    teacher = tiny_teacher("llama")
    pair = make_pair(teacher, 16, variant)
    fill_corrections(pair)
    fill_start(pair, teacher, StartConfig(method="pca"), id_batches(2), seed=0)
    assert all(not bool(value.any()) for value in corrections(pair).values())


@EITHER
def test_experts_keep_no_correction(variant: Variant) -> None:
    pair = make_pair(random_model(FAMILY_CONFIGS["mixtral"]()), 16, variant)
    assert corrections(pair) == {}


def test_a_rotation_turns_corrections_too() -> None:
    teacher = tiny_teacher("llama")
    pair = make_pair(teacher, 16, TUNED)
    fill_start(pair, teacher, StartConfig(rotation=False, basis="principal"), id_batches(6), seed=0)
    assert corrections(pair)
    assert all(bool(value.any()) for value in corrections(pair).values())
    before = {name: value.detach().clone() for name, value in corrections(pair).items()}
    logits = pair.eval().logits(IDS)[0].detach()
    assert rotate_student(pair, seed=5) is None
    torch.testing.assert_close(pair.logits(IDS)[0], logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
    rotation = random_rotation(16, 5).float()
    torch.testing.assert_close(corrections(pair)[f"corrections.{DOWN}"], rotation.T @ before[f"corrections.{DOWN}"])
    torch.testing.assert_close(corrections(pair)[f"corrections.{UP}"], before[f"corrections.{UP}"] @ rotation)


@EITHER
@pytest.mark.parametrize("form", ["replace", "complement"])
def test_a_dense_phase_begins_as_the_corrected_student(form: str, variant: Variant) -> None:
    pair = corrected_pair(variant=variant)
    whole = set(corrections(pair))
    before = pair.logits(IDS)[0]
    pair.enter(Dense(tensors="mlp", form=form))  # type: ignore[arg-type]
    torch.testing.assert_close(pair.logits(IDS)[0], before, rtol=1e-5, atol=1e-5)
    assert bool(corrections(pair)) is (form == "complement")
    plan, stored = merge_plan(pair.architecture, variant, pair.dense), pair.stored()
    check_trained(plan, stored, 32, 16)
    pair.enter(None)
    assert set(corrections(pair)) == whole


def test_a_checkpoint_of_another_setting_or_shape_is_refused() -> None:
    pair = corrected_pair()
    stored = pair.stored()
    with pytest.raises(CheckpointError, match=r"lacks corrections\.model.*has corrections"):
        check_trained(merge_plan(pair.architecture, CORRECTED), pair.trained(), 32, 16)
    with pytest.raises(CheckpointError, match=r"has corrections\.model"):
        check_trained(merge_plan(pair.architecture, Variant()), stored, 32, 16)
    wrong = {**stored, f"corrections.{DOWN}": torch.zeros(3, 3)}
    with pytest.raises(CheckpointError, match="corrections"):
        check_free(merge_plan(pair.architecture, CORRECTED), wrong, stock_student(pair, tiny_teacher("llama")))


@EITHER
def test_a_run_keeps_its_corrections_through_resumption_and_into_the_student(tmp_path: Path, variant: Variant) -> None:
    changes = {"student": {"hidden_size": 16, "correction": variant.correction}, "convert": {"dtype": "float32"}}
    whole = train(tiny_recipe(tmp_path, run=str(tmp_path / "whole"), **changes))
    first = load_file(tmp_path / "whole" / "train" / "checkpoint-2" / "model.safetensors")
    last = load_file(whole / "model.safetensors")
    names = [name for name in last if name.startswith("corrections.")]
    assert len(names) == 2 * (1 if variant == CORRECTED else 3)
    assert all(bool(last[name].any()) and torch.equal(first[name], last[name]) for name in names)
    assert json.loads((whole / "lrc_config.json").read_text())["student"]["correction"] == variant.correction

    train(tiny_recipe(tmp_path, train__max_steps=4, **changes))
    resumed = train(tiny_recipe(tmp_path, **changes), resume="auto")
    again = load_file(resumed / "model.safetensors")
    assert again.keys() == last.keys()
    assert all(torch.equal(again[name], last[name]) for name in names)

    student = AutoModelForCausalLM.from_pretrained(convert(whole, tmp_path / "student", dtype="float32"))
    source = read_source(whole, teacher=None, student=None)
    pair = PairModel(
        tiny_teacher("llama"), hidden_size=16, variant=variant, objective=ObjectiveConfig(without=("all",))
    )
    for name, value in pair.stored().items():
        value.data = source.trained[name]
    with torch.no_grad():
        ours = pair.eval().logits(IDS)[0]
        torch.testing.assert_close(student(input_ids=IDS).logits, ours, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_from_before_the_key_goes_on_and_one_of_the_other_setting_does_not(tmp_path: Path) -> None:
    first = train(tiny_recipe(tmp_path, train__max_steps=2))
    facts = json.loads((first / "lrc_config.json").read_text())
    for values in (facts["student"], facts["recipe"]["student"]):
        assert values.pop("correction") == "none"
    (first / "lrc_config.json").write_text(json.dumps(facts))
    (first / "SHA256SUMS").unlink()
    write_sums(first)
    with pytest.raises(ConfigError, match="holds another student"):
        train(tiny_recipe(tmp_path, student__correction="outputs"), resume="auto")
    assert train(tiny_recipe(tmp_path), resume="auto").name == "checkpoint-6"


def test_a_kept_start_brings_its_corrections_and_none_to_others(tmp_path: Path) -> None:
    kept = tmp_path / "kept.safetensors"
    whole = {"student": {"hidden_size": 16, "correction": "outputs"}}
    made, read = (tiny_recipe(tmp_path, run=str(tmp_path / name), **whole) for name in ("made", "read"))
    runs = [load_file(train(recipe, keep_start=kept) / "model.safetensors") for recipe in (made, read)]
    assert all(torch.equal(runs[0][name], value) for name, value in runs[1].items())
    assert sum(name.startswith("corrections.") for name in load_file(kept)) == 2
    with pytest.raises(CheckpointError, match=r"corrections\.model.*missing in the pair"):
        train(tiny_recipe(tmp_path, run=str(tmp_path / "plain")), keep_start=kept)


def test_a_held_teacher_s_merges_are_corrected_too(tmp_path: Path) -> None:
    losses = []
    for format in ("native", "int8"):
        changes = {"student__correction": "mlp", "teacher_weights__format": format, "train__max_steps": 2}
        folder = train(tiny_recipe(tmp_path, run=str(tmp_path / format), **changes))
        lines = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["kind"] == "train"])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_few_tokens_and_layers_without_a_correction_are_told() -> None:
    pair = corrected_pair()
    widest = corrections(pair)[f"corrections.{DOWN}"].shape[1]
    assert corrected_in_words(pair, FEW_TOKENS * widest) == "corrections in 2 of 2 layers"
    few = corrected_in_words(pair, FEW_TOKENS * widest - 1)
    assert few.startswith("corrections in 2 of 2 layers; ")
    assert f"few for fits of {widest} inputs" in few
    corrections(pair)[f"corrections.{DOWN}"].data.zero_()
    assert corrected_in_words(pair, 10**6) == "corrections in 1 of 2 layers"
    pair = corrected_pair(variant=TUNED)
    assert corrected_in_words(pair, 10**6) == "corrections in 2 of 2 layers, of whole MLPs in 2"
    for name in (UP, UP.replace("up", "gate")):
        corrections(pair)[f"corrections.{name}"].data.zero_()
    assert corrected_in_words(pair, 10**6) == "corrections in 2 of 2 layers, of whole MLPs in 1"


def test_what_can_t_have_corrections_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"student\.correction = outputs needs method = clone and start\.method = cal"
    ):
        tiny_recipe(tmp_path, student__correction="outputs", start__method="pca")
    mixtral = make_pair(random_model(FAMILY_CONFIGS["mixtral"]()), 16).architecture
    with pytest.raises(ConfigError, match=r"needs MLPs that are modules .* mixtral has none"):
        check_corrected(mixtral, CORRECTED)
    check_corrected(mixtral, Variant())
    for family in ("phi", "cohere", "cohere2"):  # MLPs beside the attention, which no start can fit
        beside = make_pair(random_model(FAMILY_CONFIGS[family]()), 16).architecture
        with pytest.raises(ConfigError, match=rf"nothing for {family}, .* Set student\.correction=none"):
            check_corrected(beside, CORRECTED)
        check_corrected(beside, Variant())
    for family in ("granite", "gemma2", "deepseek_v3"):  # of the last, the first layer has one MLP alone
        check_corrected(make_pair(random_model(FAMILY_CONFIGS[family]()), 16).architecture, TUNED)
    with pytest.raises(ConfigError, match=r"DeepSpeed does not hand out"):
        check_strategy(tiny_recipe(tmp_path, student__correction="mlp"), "zero2")
    check_strategy(tiny_recipe(tmp_path, student__correction="mlp"), "fsdp2")


@pytest.mark.parametrize("family", ["granite", "starcoder2", "olmo2"])
@torch.no_grad()
def test_a_residual_factor_a_bias_and_a_norm_behind_are_fitted_as_the_stock_student_has_them(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the walk reports of a corrected layer is what the stock student does there, and nearer than without."""
    errors = {}
    monkeypatch.setattr(tune, "STEP_TOKENS", 128)  # twelve steps a pass
    monkeypatch.setattr(tune, "RATE", 0.3)  # sixteen inputs are few
    for variant in (Variant(), CORRECTED, TUNED):
        teacher, batches = random_model(FAMILY_CONFIGS[family]()), id_batches(48)
        pair = make_pair(teacher, 16, variant)
        report = fill_start(pair, teacher, StartConfig(basis="principal", rotation=False), batches, seed=0)
        if variant != Variant():
            assert all(bool(value.any()) for value in corrections(pair).values())
        student, ids = merged_student(pair, teacher), torch.cat(batches)
        with recorded(student, ["model.layers.0"]) as ours, recorded(teacher, ["model.layers.0"]) as theirs:
            student(input_ids=ids, use_cache=False)
            teacher(input_ids=ids, use_cache=False)
        (_, own), (_, wanted) = ours["model.layers.0"][0], theirs["model.layers.0"][0]
        basis = torch.linalg.lstsq(wanted.flatten(0, 1), own.flatten(0, 1)).solution
        left = own.flatten(0, 1) - wanted.flatten(0, 1) @ basis
        errors[variant] = report.layer_errors[0], float(left.square().sum() / own.square().sum())
    assert errors[TUNED][0] < errors[CORRECTED][0] < errors[Variant()][0]
    assert errors[TUNED][1] < errors[CORRECTED][1] < errors[Variant()][1]
