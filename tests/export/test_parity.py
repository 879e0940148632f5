"""The parity check: its measure by hand, its tolerances, and that it looks at the folder it is given."""

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lrc.errors import NumericsError
from lrc.export import parity
from lrc.export.convert import read_source
from lrc.export.parity import check_parity, whole_model_note
from lrc.models.pair_model import PairModel
from lrc.verbs.convert import convert
from lrc.verbs.train import train
from tests.tiny import tiny_recipe

LIMITS = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Models:
    """Puts chosen logits in the place of the three models."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.factored = torch.tensor([[3.0, -4.0], [0.0, 0.0]])  # root mean square 2.5
        self.merged_for: list[torch.dtype] = []
        self.in_memory = self.rounded = self.after_reload = self.factored
        monkeypatch.setattr(parity, "_factored_logits", lambda source, ids: self.factored)
        monkeypatch.setattr(parity, "_merged_logits", self.merged)
        monkeypatch.setattr(parity, "load_model", self.load)

    def merged(self, source: Any, ids: Tensor, exported: torch.dtype) -> tuple[Tensor, Tensor]:
        self.merged_for.append(exported)
        return self.in_memory, self.rounded

    def load(self, source: str, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> Any:
        assert not trust_remote_code
        assert source == str(self.folder)
        assert dtype == torch.float32
        return lambda input_ids: SimpleNamespace(logits=self.after_reload)

    def check(self, exported: torch.dtype = torch.float32, **options: Any) -> dict[str, Any]:
        self.merged_for.clear()
        save_file({"weight": torch.zeros(1, dtype=exported)}, self.folder / "model.safetensors")
        source: Any = SimpleNamespace(config=SimpleNamespace(vocab_size=48), trust_remote_code=False, renamed=True)
        facts = check_parity(source, self.folder, **options)
        assert self.merged_for == [exported]
        return facts


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Models:
    return Models(tmp_path, monkeypatch)


def one_off(logits: Tensor, difference: float) -> Tensor:
    changed = logits.clone()
    changed[1, 1] -= difference
    changed[0, 0] += 0.5 * difference
    return changed


def test_the_difference_is_the_largest_one_over_the_root_mean_square(models: Models) -> None:
    models.in_memory = one_off(models.factored, 0.0001)
    models.rounded = one_off(models.factored, 0.3)
    models.after_reload = one_off(models.rounded, 0.0002)
    facts = models.check(torch.bfloat16)
    assert facts["logit_scale"] == 2.5
    assert facts["in_memory"]["max_abs_difference"] == pytest.approx(0.0001)
    assert facts["in_memory"]["relative_difference"] == pytest.approx(0.0001 / 2.5)
    assert facts["after_reload"]["max_abs_difference"] == pytest.approx(0.0002, rel=1e-3)
    assert facts["after_reload"]["relative_difference"] == pytest.approx(0.0002 / 2.5, rel=1e-3)
    assert facts["rounding"] == pytest.approx((0.3**2 * 1.25 / 4) ** 0.5 / 2.5)
    assert facts["passed"] is True
    assert (facts["dtype"], facts["tolerance"], facts["positions"]) == ("bfloat16", 1e-4, 64)


@pytest.mark.parametrize("exported", LIMITS, ids=str)
def test_the_tolerance_of_rounding_goes_by_the_exported_dtype(models: Models, exported: torch.dtype) -> None:
    def rounded_by(share: float) -> None:
        models.rounded = models.after_reload = models.factored + share * LIMITS[exported] * 2.5

    rounded_by(0.98)
    facts = models.check(exported)
    assert (facts["passed"], facts["rounding_tolerance"]) == (True, LIMITS[exported])
    rounded_by(1.02)
    with pytest.raises(NumericsError):
        models.check(exported)


@pytest.mark.parametrize("exported", LIMITS, ids=str)
def test_a_folder_that_differs_from_the_rounded_weights_never_passes(models: Models, exported: torch.dtype) -> None:
    models.after_reload = one_off(models.rounded, 1.1e-4 * 2.5)
    with pytest.raises(NumericsError):
        models.check(exported)


@pytest.mark.parametrize("exported", LIMITS, ids=str)
def test_the_merge_in_memory_has_the_tolerance_of_float32_alone(models: Models, exported: torch.dtype) -> None:
    models.in_memory = one_off(models.factored, 1.1e-4 * 2.5)
    with pytest.raises(NumericsError):
        models.check(exported)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["in_memory", "rounded", "after_reload", "factored"])
def test_logits_that_are_not_finite_never_pass(models: Models, place: str, wrong: float) -> None:
    setattr(models, place, one_off(models.factored, wrong))
    with pytest.raises(NumericsError):
        models.check()


def test_a_refusal_says_what_was_allowed_and_found(models: Models) -> None:
    models.after_reload = one_off(models.factored, 1.25)
    with pytest.raises(NumericsError) as caught:
        models.check(torch.float16)
    message = str(caught.value)
    for part in ("in memory within 0.0001, found 0;", "found 0.5", "within 0.02", "Nothing was published"):
        assert part in message


def test_logits_that_are_all_zero_are_compared_too(models: Models) -> None:
    models.factored = models.in_memory = models.rounded = models.after_reload = torch.zeros(2, 2)
    assert models.check()["passed"] is True
    models.after_reload = one_off(models.factored, 1e-3)
    with pytest.raises(NumericsError):
        models.check()


def test_progress_counts_the_models(models: Models) -> None:
    seen: list[tuple[int, int]] = []
    models.check(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parity")
    return train(tiny_recipe(root, start__method="channel", train__max_steps=1))


def test_the_scale_is_that_of_the_exported_models_logits(checkpoint: Path, tmp_path: Path) -> None:
    out = convert(checkpoint, tmp_path / "out")
    facts = json.loads((out / "parity.json").read_text())
    ids = torch.randint(0, 48, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float64)(ids).logits
    assert facts["positions"] == ids.numel()
    assert facts["logit_scale"] == pytest.approx(float(logits.square().mean().sqrt()), rel=1e-4)


def test_a_folder_with_one_wrong_tensor_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = convert(checkpoint, tmp_path / "out")
    source = read_source(checkpoint, teacher=None, student=None)
    assert check_parity(source, out) == json.loads((out / "parity.json").read_text())
    wrong = tmp_path / "wrong"
    shutil.copytree(out, wrong)
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.0.self_attn.k_proj.weight"] *= 1.05
    save_file(tensors, wrong / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match=r"in memory within 0.0001, found (0|[0-9.]+e-0[5-9]);"):
        check_parity(source, wrong)


def test_a_teacher_stored_in_float64_converts(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, start__method="random", train__max_steps=1)
    AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", dtype=torch.float64).save_pretrained(
        tmp_path / "teacher"
    )
    out = convert(train(recipe), tmp_path / "out")
    assert json.loads((out / "parity.json").read_text())["dtype"] == "float64"


def test_each_model_is_freed_before_the_next_is_built_and_no_weight_is_held_twice(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = convert(checkpoint, tmp_path / "out")
    opened = read_source(checkpoint, teacher=None, student=None)
    source = replace(opened, trained=dict(opened.trained))  # read once, so that a copy would show
    built: list[weakref.ref[Any]] = []
    alive: list[tuple[str, int]] = []

    def watched(name: str, build: Any) -> Any:
        def build_watched(*arguments: Any, **options: Any) -> Any:
            alive.append((name, sum(reference() is not None for reference in built)))
            made = build(*arguments, **options)
            if not any(made is tensor for tensor in source.trained.values()):  # a gain is the checkpoint's own
                built.append(weakref.ref(made))
            return made

        return build_watched

    def logits(pair: PairModel, ids: Tensor) -> Any:
        shared.update(name for name, value in pair.trained().items() if value.data_ptr() == trained[name])
        return plain_logits(pair, ids)

    shared: set[str] = set()
    trained = {name: value.data_ptr() for name, value in source.trained.items()}
    plain_logits = PairModel.logits
    monkeypatch.setattr(PairModel, "logits", logits)
    for name in ("load_model", "PairModel", "merged_tensor"):
        monkeypatch.setattr(parity, name, watched(name, getattr(parity, name)))
    monkeypatch.setattr(parity, "stock_model", watched("merged", parity.stock_model))
    facts = check_parity(source, out)
    expected = [("load_model", 0), ("PairModel", 1), ("merged", 0)]  # the pair is made of the teacher
    expected += [("merged_tensor", 1)] * len(source.plan.names)  # the merged model, and no tensor before this one
    assert alive == [*expected, ("load_model", 0)]
    assert shared == set(source.trained)
    assert facts == json.loads((out / "parity.json").read_text())


def test_what_is_checked_whole_though_it_is_large_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = {"experts": torch.zeros(10, 16, dtype=torch.uint8), "head": torch.zeros(30, dtype=torch.bfloat16)}
    save_file(packed, tmp_path / "model.safetensors")
    source: Any = SimpleNamespace(teacher_folder=tmp_path, renamed=True)
    assert whole_model_note(source) is None
    size = 4 * (2 * 160 + 30)  # a byte of packed weights holds two
    monkeypatch.setattr(parity, "WHOLE_BYTES", size)
    assert whole_model_note(source) is None
    monkeypatch.setattr(parity, "WHOLE_BYTES", size - 1)
    note = whole_model_note(source)
    assert note is not None
    assert "composite, stacked experts, fp8 or mxfp4), so the check holds the teacher whole" in note
    assert "about 0.0 GB" in note
    source.renamed = False
    assert whole_model_note(source) is None
