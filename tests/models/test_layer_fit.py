"""One layer's fit against explicit least squares in float64, on rows that stock models hand out."""

import weakref
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrc.clone.sites import Stage, Variant, parent_of, projection_of
from lrc.models import part
from lrc.models.layer_fit import LayerFit, importance
from lrc.models.pair_model import PairModel
from lrc.models.stage_tensors import tensors_below
from lrc.models.tiny import random_model
from tests.clone.test_initialise import ridge_on_rows
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.stock_student import Calls, num_hooks, recorded, stock_student
from tests.models.test_pair import fill_random, make_pair
from tests.models.tiny_configs import FAMILIES
from tests.tiny import tiny_teacher

WINDOW = 16
PASSES = 2
IO = Variant(attention_projections="io", ffn_projections="io")


def id_batches(count: int, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(4, 48, (2, WINDOW), generator=generator) for _ in range(count)]


def first_tokens_ten_times(batches: list[Tensor]) -> list[Tensor]:
    """Weights of `[rows, d]` batches that hold windows of `WINDOW` tokens."""
    return [torch.tensor([10.0] + [1.0] * (WINDOW - 1)).double().repeat(len(rows) // WINDOW) for rows in batches]


def explicit_fit(inputs: list[Tensor], targets: list[Tensor], prior: Tensor, weights: list[Tensor]) -> Tensor:
    """Fit `[rows, d]` batches with a weight for each row."""
    return ridge_on_rows(torch.cat(inputs), torch.cat(targets), torch.cat(weights), 0.1, prior)


@dataclass
class Walk:
    """All layers of a pair fitted one after the other, and the stock models' view of the same batches."""

    pair: PairModel
    basis: Tensor
    prior: dict[str, Tensor]
    """Trained tensors before the fit, float64."""
    fitted: dict[str, Tensor]
    streams: list[tuple[list[Tensor], list[Tensor]]]
    """What each fit returned: the teacher's and the student's streams."""
    teacher: nn.Module
    teacher_calls: Calls
    student_calls: Calls

    def stream(self, calls: Calls, layer: int, position: int) -> list[Tensor]:
        """A model's stream before a layer's stage, or after its last one: `[rows, d]` batches."""
        stages = self.pair.architecture.stages[layer]
        if position == len(stages):
            return [output.flatten(0, 1) for _, output in calls[f"model.layers.{layer}"]]
        stage = stages[position]
        return self.inputs(calls, f"model.layers.{layer}.{stage.norm or stage.readers[0]}")

    def inputs(self, calls: Calls, name: str) -> list[Tensor]:
        return [given.flatten(0, 1) for given, _ in calls[name]]

    def missing(self, layer: int, position: int) -> tuple[list[Tensor], list[Tensor]]:
        """What the stage is to add, and the weight of each row."""
        after = self.stream(self.teacher_calls, layer, position + 1)
        before = self.stream(self.student_calls, layer, position)
        wanted = [theirs @ self.basis - ours for theirs, ours in zip(after, before, strict=True)]
        return wanted, [1 / rows.square().mean(1) for rows in after]


def layer_fits(pair: PairModel, teacher: nn.Module, basis: Tensor, ids: Tensor) -> list[LayerFit]:
    keywords: list[dict[str, Any]] = []
    layers = list(teacher.get_submodule("model.layers").children())
    handles = [
        layer.register_forward_pre_hook(lambda _, args, given: keywords.append(given), with_kwargs=True)
        for layer in layers
    ]
    teacher(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    unit = pair.architecture.scales.unit_gain
    return [LayerFit(layer, basis, given, unit, PASSES) for layer, given in zip(pair.layers, keywords, strict=True)]


def random_basis() -> Tensor:
    return torch.linalg.qr(torch.randn(32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))).Q


@torch.no_grad()
def walk(teacher: Any, variant: Variant, num_batches: int) -> Walk:
    pair, basis, batches = make_pair(teacher, 16, variant), random_basis(), id_batches(num_batches)
    fill_random(pair)
    prior = {name: parameter.double() for name, parameter in pair.trained().items()}
    streams = [([teacher.model.embed_tokens(ids) for ids in batches], [pair.base.embed_tokens(ids) for ids in batches])]
    for fit in layer_fits(pair, teacher, basis, batches[0]):
        streams.append(fit.run(*streams[-1]))
    exact = teacher.double()
    names = [name for name, _ in exact.named_modules() if name.startswith("model.layers.") and "rotary" not in name]
    names = [name for name in names if not name.endswith(("self_attn", "mlp"))]
    student = stock_student(pair, exact)
    with recorded(exact, names) as teacher_calls, recorded(student, names) as student_calls:
        for ids in batches:
            exact(input_ids=ids, use_cache=False)
            student(input_ids=ids, use_cache=False)
    fitted = {name: parameter.double() for name, parameter in pair.trained().items()}
    return Walk(pair, basis, prior, fitted, streams[1:], exact, teacher_calls, student_calls)


@pytest.mark.parametrize("variant", [Variant(), IO], ids=["all", "io"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_readers_regress_the_teacher_s_normed_inputs_on_the_student_s(family: str, variant: Variant) -> None:
    found = walk(tiny_teacher(family), variant, 6)
    for layer, stages in enumerate(found.pair.architecture.stages):
        for stage in stages:
            name = f"model.layers.{layer}.{stage.readers[0]}"
            inputs, targets = found.inputs(found.student_calls, name), found.inputs(found.teacher_calls, name)
            for reader in stage.readers:
                trained = f"projections.model.layers.{layer}.{projection_of(reader, stage, variant)}"
                first = f"projections.model.layers.{layer}.{projection_of(stage.readers[0], stage, variant)}"
                expected = explicit_fit(inputs, targets, found.prior[first].T, first_tokens_ten_times(inputs)).T
                torch.testing.assert_close(found.fitted[trained], expected, rtol=0, atol=1e-3, msg=trained)


def olmo2() -> Any:
    """A teacher with norms behind its writers only."""
    return random_model(FAMILY_CONFIGS["olmo2"]())


def test_readers_of_the_bare_stream_weigh_each_token_by_its_size() -> None:
    """Streams of a few massive tokens would have the fit to themselves; a norm would have made all alike."""
    found = walk(olmo2(), Variant(), 6)
    for layer, stages in enumerate(found.pair.architecture.stages):
        for stage in stages:
            assert stage.norm is None
            name = f"model.layers.{layer}.{stage.readers[0]}"
            inputs, targets = found.inputs(found.student_calls, name), found.inputs(found.teacher_calls, name)
            counts = first_tokens_ten_times(inputs)
            weights = [count / rows.square().mean(1) for count, rows in zip(counts, targets, strict=True)]
            expected = explicit_fit(inputs, targets, found.prior[f"projections.{name}"].T, weights).T
            for reader in stage.readers:
                fitted = found.fitted[f"projections.model.layers.{layer}.{reader}"]
                torch.testing.assert_close(fitted, expected, rtol=0, atol=1e-3, msg=reader)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_writers_regress_what_the_student_s_stream_lacks_with_the_teacher_s_size_as_weight(family: str) -> None:
    found = walk(tiny_teacher(family), Variant(), 6)
    for layer, stages in enumerate(found.pair.architecture.stages):
        for position, stage in enumerate(stages):
            name = f"model.layers.{layer}.{stage.writers[0]}"
            weight = found.teacher.get_parameter(f"{name}.weight")
            written = [rows @ weight.T for rows in found.inputs(found.student_calls, name)]
            missing, weights = found.missing(layer, position)
            if stage.post_norm is not None:
                sizes = [rows.square().mean(1) for rows in written]
                missing = [rows * size.sqrt()[:, None] for rows, size in zip(missing, sizes, strict=True)]
                weights = [rows / size for rows, size in zip(weights, sizes, strict=True)]
            weights = [rows * count for rows, count in zip(weights, first_tokens_ten_times(written), strict=True)]
            expected = explicit_fit(written, missing, found.prior[f"projections.{name}"], weights)
            error = found.fitted[f"projections.{name}"] - expected
            # directions that no row has hold float32's rounding over the smallest ridge; what is written has not
            rows = torch.cat(written)
            assert float(error.abs().max()) < 0.02, name
            assert float((rows @ error).abs().max()) < 1e-3 * float((rows @ expected).abs().max()), name


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_correction_regresses_what_the_merged_writer_leaves_over_on_its_inputs(family: str) -> None:
    found = walk(tiny_teacher(family), Variant(correction="outputs"), 12)
    stored = found.pair.stored()
    assert {name for name in stored if name.startswith("corrections.")} == {
        f"corrections.model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)
    }
    for layer, stages in enumerate(found.pair.architecture.stages):
        name = f"model.layers.{layer}.mlp.down_proj"
        inputs = found.inputs(found.student_calls, name)
        written = [rows @ found.teacher.get_parameter(f"{name}.weight").T for rows in inputs]
        missing, weights = found.missing(layer, 1)
        if stages[1].post_norm is not None:
            sizes = [rows.square().mean(1) for rows in written]
            missing = [rows * size.sqrt()[:, None] for rows, size in zip(missing, sizes, strict=True)]
            weights = [rows / size for rows, size in zip(weights, sizes, strict=True)]
        projection = found.fitted[f"projections.{name}"]
        left = [wanted - rows @ projection for wanted, rows in zip(missing, written, strict=True)]
        weights = [rows * count for rows, count in zip(weights, first_tokens_ten_times(written), strict=True)]
        expected = explicit_fit(inputs, left, torch.zeros(inputs[0].shape[1], 16, dtype=torch.float64), weights).T
        correction = stored[f"corrections.{name}.weight"].double()
        assert float(expected.abs().max()) > 0.01
        rows = torch.cat(inputs)
        assert float((rows @ (correction - expected).T).abs().max()) < 2e-3 * float((rows @ expected.T).abs().max())


def test_the_gain_behind_a_writer_is_a_weighted_least_squares_a_channel() -> None:
    found = walk(tiny_teacher("gemma3_text"), Variant(), 6)
    eps = found.pair.student_config.rms_norm_eps
    for layer, stages in enumerate(found.pair.architecture.stages):
        for position, stage in enumerate(stages):
            name = f"model.layers.{layer}.{stage.post_norm}"
            written = torch.cat(found.inputs(found.student_calls, name))
            normed = written / (written.square().mean(1, keepdim=True) + eps).sqrt()
            missing, weights = (torch.cat(batches) for batches in found.missing(layer, position))
            root = weights.sqrt()[:, None]
            gains = [
                torch.linalg.lstsq(root * normed[:, [channel]], root * missing[:, [channel]]).solution.item()
                for channel in range(16)
            ]
            expected = torch.tensor(gains, dtype=torch.float64) - 1  # Gemma stores the gain less one
            torch.testing.assert_close(found.fitted[f"gains.{name}.weight"], expected, rtol=0, atol=1e-4, msg=name)


def test_a_fit_leaves_gains_before_readers_and_other_layers_alone() -> None:
    teacher = tiny_teacher("gemma3_text")
    pair, batches = make_pair(teacher, 16), id_batches(3)
    fill_random(pair)
    before = {name: parameter.detach().clone() for name, parameter in pair.trained().items()}
    with torch.no_grad():
        (first, _) = layer_fits(pair, teacher, random_basis(), batches[0])
        first.run(
            [teacher.model.embed_tokens(ids) for ids in batches], [pair.base.embed_tokens(ids) for ids in batches]
        )
    changed = {name for name, parameter in pair.trained().items() if not torch.equal(parameter, before[name])}
    names = [*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]
    expected = {f"projections.model.layers.0.{name}" for name in names}
    gains = ("post_attention_layernorm", "post_feedforward_layernorm")
    assert changed == expected | {f"gains.model.layers.0.{norm}.weight" for norm in gains}


def test_a_stream_that_the_caller_has_let_go_of_is_freed_once_the_readers_are_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    teacher = tiny_teacher("llama")
    pair, batches = make_pair(teacher, 16), id_batches(3)
    fill_random(pair)
    held = [[embed(ids) for ids in batches] for embed in (pair.base.embed_tokens, teacher.model.embed_tokens)]
    streams = [weakref.ref(stream) for stream in held[1]]
    alive: list[list[int]] = []

    def count(self: LayerFit, *arguments: Any) -> None:
        alive.append([sum(stream() is not None for stream in streams)])
        readers(self, *arguments)

    def count_again(self: LayerFit, *arguments: Any) -> list[Tensor]:
        alive[-1].append(sum(stream() is not None for stream in streams))
        return writer(self, *arguments)

    readers, writer = LayerFit._fit_readers, LayerFit._fit_writer
    monkeypatch.setattr(LayerFit, "_fit_readers", count)
    monkeypatch.setattr(LayerFit, "_fit_writer", count_again)
    with torch.no_grad():
        layer_fits(pair, teacher, random_basis(), batches[0])[0].run(held.pop(), held.pop())
    assert alive == [[3, 0], [0, 0]]


def check_streams(found: Walk) -> None:
    for layer, (teacher, student) in enumerate(found.streams):
        for kept, calls in ((teacher, found.teacher_calls), (student, found.student_calls)):
            for ours, stock in zip(kept, found.stream(calls, layer, 2), strict=True):
                error = (ours.flatten(0, 1) - stock).abs().max()
                assert float(error) < 1e-4 * float(stock.abs().max()), layer


@pytest.mark.parametrize("variant", [Variant(), IO], ids=["all", "io"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_streams_after_a_fit_are_those_of_the_stock_merged_layer(family: str, variant: Variant) -> None:
    window = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
    check_streams(walk(tiny_teacher(family, **(window if family == "gemma3_text" else {})), variant, 3))


def test_readers_of_the_bare_stream_are_fitted_too() -> None:
    found = walk(olmo2(), Variant(), 3)
    assert all(stage.norm is None and stage.post_norm for stage in found.pair.architecture.stages[0])
    check_streams(found)


ATTENTION = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", [*ATTENTION, "mlp.gate_proj.weight", "mlp.up_proj.weight"]),
        (
            "mixtral",  # behind experts, whose writer is not fitted, the layer runs whole
            [*ATTENTION, *ATTENTION, "self_attn.o_proj.weight", "mlp.gate.weight", *EXPERTS],
        ),
    ],
    ids=["llama", "mixtral"],
)
def test_a_fit_merges_the_readers_of_a_stage_once_and_nothing_that_it_does_not_run(
    family: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = random_model(FAMILY_CONFIGS[family]())
    pair, (ids,) = make_pair(teacher, 16), id_batches(1)
    fill_random(pair)
    merged: list[str] = []
    plainly = part.merge

    def watched(weight: Tensor, projection: Tensor, axis: int) -> Tensor:
        tensors = pair.layers[0].teacher.named_parameters()
        merged.append(next(name for name, value in tensors if value is weight))
        return plainly(weight, projection, axis)

    monkeypatch.setattr(part, "merge", watched)
    with torch.no_grad():
        fit = layer_fits(pair, teacher, random_basis(), ids)[0]
        fit.run([torch.randn(2, WINDOW, 32)], [torch.randn(2, WINDOW, 16)])
    assert sorted(merged) == sorted(expected)


@pytest.mark.parametrize("family", ["starcoder2", "gemma3_text", "deepseek_v3"])
def test_the_tensors_below_a_module_are_those_of_the_whole_layer(family: str) -> None:
    pair = make_pair(random_model(FAMILY_CONFIGS[family]()), 16, Variant(correction="outputs"))
    fill_random(pair)
    for layer in pair.layers:
        plan, whole = layer.plan, layer.student_tensors()
        modules = [name for name, _ in layer.twin.named_modules() if name]
        for module in modules:
            found = tensors_below(layer, module)
            made = {name for name, _ in layer.twin.named_buffers()} - layer.teacher.state_dict().keys()
            assert found.keys() == {name for name in whole if name.startswith(f"{module}.")} - made
            assert all(torch.equal(value, whole[name]) for name, value in found.items())
        assert layer.plan is plan
        stage = layer.cloning.stages[0]
        without = tensors_below(layer, parent_of(stage), without=stage.writers[0])
        left_out = tensors_below(layer, parent_of(stage)).keys() - without.keys()
        assert left_out == {name for name in plan.merges if name.startswith(f"{stage.writers[0]}.")} != set()


def test_a_window_s_first_token_counts_ten_times() -> None:
    weights = importance(torch.zeros(2, 3, 5, dtype=torch.bfloat16))
    assert weights.tolist() == [[10, 1, 1]] * 2
    assert weights.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"writers": ("mlp.down_proj", "mlp.down_proj")}, "mlp.down_proj, mlp.down_proj (several writers answer one"),
        ({"readers": ("mlp.down_proj",)}, "mlp.down_proj (its input is made inside mlp)"),
        ({"residual": None}, "mlp.down_proj (it runs beside another stage"),
    ],
    ids=["two writers", "an inner input", "a parallel block"],
)
def test_a_writer_that_can_t_be_fitted_keeps_its_start_says_why_and_leaves_no_hooks(
    changes: dict[str, Any], reason: str
) -> None:
    teacher = tiny_teacher("llama")
    pair, (ids,) = make_pair(teacher, 16), id_batches(1)
    fill_random(pair)
    hooks = num_hooks(teacher)
    with torch.no_grad():
        fit = layer_fits(pair, teacher, random_basis(), ids)[0]
        mlp: Stage = fit.stages[1]
        before = pair.trained()["projections.model.layers.0.mlp.down_proj"].clone()
        fit.stages = (fit.stages[0], replace(mlp, **changes))
        _, streams = fit.run([teacher.model.embed_tokens(ids)], [pair.base.embed_tokens(ids)])
        stock = stock_student(pair, teacher)
        with recorded(stock, ["model.layers.0"]) as calls:
            stock(input_ids=ids, use_cache=False)
    assert len(fit.kept) == 1
    assert fit.kept[0].startswith(reason)
    if "readers" not in changes:
        assert torch.equal(pair.trained()["projections.model.layers.0.mlp.down_proj"], before)
        torch.testing.assert_close(streams[0], calls["model.layers.0"][0][1], atol=1e-4, rtol=0)
    assert num_hooks(teacher) == hooks
