"""Parity of large students: the logits are those of whole models, and no more than a layer's weights are there."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrc.errors import NumericsError
from lrc.export import convert as convert_module
from lrc.export import parity
from lrc.export import streamed_parity as module
from lrc.export.convert import Source, read_source
from lrc.export.parity import check_parity
from lrc.export.streamed_parity import is_streamed, streamed_factored_logits, streamed_student_logits
from lrc.models.pair_model import PairModel
from lrc.verbs.convert import convert
from lrc.verbs.train import train
from tests.models.tiny_configs import FAMILIES
from tests.tiny import teacher_folder, tiny_recipe, write_rows

IDS = torch.randint(0, 48, (2, 32), generator=torch.Generator().manual_seed(3))
TIED = [(True, True), (True, False), (False, False)]


def checkpoint_of(root: Path, family: str = "llama", *, tied: bool = False, **changes: Any) -> Path:
    teacher_folder(root / "teacher", family, tie_word_embeddings=tied)
    write_rows(root / "train.jsonl")
    return train(tiny_recipe(root, start__method="channel", train__max_steps=1, data__held_out=None, **changes))


def source_of(checkpoint: Path) -> Source:
    return read_source(checkpoint, teacher=None, student=None)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_module, "CHUNK_BYTES", 4 * 32 * 7)  # 7 of the vocabulary's 48 rows


@pytest.mark.parametrize(("tied", "shares"), TIED, ids=["tied", "tied teacher", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_whole_models(tmp_path: Path, family: str, tied: bool, shares: bool) -> None:
    student = {"hidden_size": 16, "tie_embedding_projection": shares}
    checkpoint = checkpoint_of(tmp_path, family, tied=tied, student=student)
    out, source = convert(checkpoint, tmp_path / "out", dtype="bfloat16"), source_of(checkpoint)
    with torch.no_grad():
        factored = parity._factored_logits(source, IDS)
        merged, rounded = parity._merged_logits(source, IDS, torch.bfloat16)
    close = {"rtol": 0, "atol": 1e-5 * float(factored.abs().max())}
    torch.testing.assert_close(streamed_factored_logits(source, IDS), factored, **close)
    found = streamed_student_logits(source, IDS, out, torch.bfloat16)
    for logits, expected in zip(found, (merged, rounded, rounded), strict=True):
        torch.testing.assert_close(logits, expected, **close)
    assert not torch.allclose(found[0], found[1], **close)


@pytest.mark.parametrize("form", ["replace", "complement"])
@pytest.mark.parametrize("tensors", ["mlp", "all"])
def test_free_weights_are_streamed_too(
    tmp_path: Path, tensors: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = {"dense_share": 0.5, "dense_tensors": tensors, "dense_form": form}
    checkpoint = checkpoint_of(tmp_path, tied=True, phases=phases)
    monkeypatch.setattr(parity, "WHOLE_BYTES", 0)
    parity_facts = json.loads((convert(checkpoint, tmp_path / "out") / "parity.json").read_text())
    assert parity_facts["in_memory"]["relative_difference"] < 1e-5
    assert parity_facts["after_reload"]["relative_difference"] < 1e-5


@pytest.mark.parametrize(("correction", "count"), [("outputs", 2), ("mlp", 6)])
@pytest.mark.parametrize("form", [None, "replace", "complement"])
def test_corrections_are_streamed_too(
    tmp_path: Path, form: str | None, correction: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = {} if form is None else {"dense_share": 0.5, "dense_form": form}
    student = {"hidden_size": 16, "correction": correction}
    checkpoint = train(tiny_recipe(tmp_path, train__max_steps=2, data__held_out=None, phases=phases, student=student))
    held = [name for name in load_file(checkpoint / "model.safetensors") if name.startswith("corrections.")]
    assert len(held) == (0 if form == "replace" else count)
    logits = []
    for most_bytes in (0, 2**40):
        monkeypatch.setattr(parity, "WHOLE_BYTES", most_bytes)
        out = convert(checkpoint, tmp_path / f"out-{most_bytes}")
        facts = json.loads((out / "parity.json").read_text())
        assert facts["in_memory"]["relative_difference"] < 1e-5
        assert facts["after_reload"]["relative_difference"] < 1e-5
        with torch.no_grad():
            logits.append(streamed_factored_logits(source_of(checkpoint), IDS))
    assert torch.equal(*logits)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(tmp_path_factory.mktemp("streamed"))


def test_only_a_teacher_above_the_size_is_streamed(checkpoint: Path, tmp_path: Path) -> None:
    source = source_of(checkpoint)
    size = sum(tensor.nbytes for tensor in load_file(source.teacher_folder / "model.safetensors").values())
    assert not is_streamed(source, size)
    assert is_streamed(source, size - 1)


def test_a_folder_with_one_wrong_tensor_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = convert(checkpoint, tmp_path / "out")
    monkeypatch.setattr(parity, "WHOLE_BYTES", 0)
    source = source_of(checkpoint)
    assert check_parity(source, out)["passed"] is True
    tensors = load_file(out / "model.safetensors")
    for name in ("model.layers.1.self_attn.k_proj.weight", "lm_head.weight", "model.norm.weight"):
        wrong = tmp_path / name
        shutil.copytree(out, wrong)
        changed = tensors | {name: tensors[name] * 1.05}
        save_file(changed, wrong / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(NumericsError, match=r"in memory within 0.0001, found (0|[0-9.]+e-0[5-9]);"):
            check_parity(source, wrong)


def test_progress_counts_the_layers_and_the_head_of_both_passes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = convert(checkpoint, tmp_path / "out")
    monkeypatch.setattr(parity, "WHOLE_BYTES", 0)
    seen: list[tuple[int, int]] = []
    check_parity(source_of(checkpoint), out, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 6) for number in range(1, 7)]  # two layers


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"])
def test_a_wrong_merge_is_refused(checkpoint: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = convert_module.student_tensor
    monkeypatch.setattr(parity, "WHOLE_BYTES", 0)

    def wrong(plan: Any, found: str, *rest: Any) -> Tensor:
        return right(plan, found, *rest) * (1.01 if found == name else 1)

    monkeypatch.setattr(convert_module, "student_tensor", wrong)
    with pytest.raises(NumericsError, match="Nothing was published"):
        convert(checkpoint, tmp_path / "out")


def held(model: torch.nn.Module) -> int:
    """Count the parameters that take memory."""
    return sum(0 not in value.stride() for value in model.parameters() if value.dim())


def test_weights_are_there_while_their_part_runs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, source = convert(checkpoint, tmp_path / "out"), source_of(checkpoint)
    models: list[torch.nn.Module] = []
    most: list[int] = []
    build, states = module.hollow_model, PairModel.hidden_states

    def watched(*arguments: Any, **options: Any) -> torch.nn.Module:
        model = build(*arguments, **options)
        models.append(model)
        for layer in model.get_submodule("model.layers"):
            layer.self_attn.register_forward_hook(lambda *_: most.append(sum(map(held, models))))
        return model

    def hidden_states(pair: PairModel, *arguments: Any) -> Any:
        models.append(pair)
        assert held(pair) == 0
        found = states(pair, *arguments)
        assert held(pair) == 0
        return found

    monkeypatch.setattr(module, "hollow_model", watched)
    monkeypatch.setattr(PairModel, "hidden_states", hidden_states)
    streamed_factored_logits(source, IDS)
    assert len(most) == 2  # the teacher's layers
    assert max(most) <= 9 + 9 + 9  # a layer's tensors, in the teacher and in the pair, and its projections and gains
    models.clear()
    most.clear()
    streamed_student_logits(source, IDS, out, torch.float32)
    assert most == [9] * 6  # two layers, each on three weights
    assert held(models[0]) == 0


def test_a_forgotten_weight_shows() -> None:
    value = torch.nn.Parameter(module.stand_in(torch.empty(3, 4, device="meta")))
    assert value.shape == (3, 4)
    assert value.untyped_storage().nbytes() == 4
    assert torch.isnan(value @ torch.ones(4)).all()


def test_chunks_cover_every_row_once() -> None:
    chunks: Iterator[tuple[int, int]] = convert_module.row_chunks(48, 32)
    assert [row for first, last in chunks for row in range(first, last)] == list(range(48))
    assert list(convert_module.row_chunks(3, 10**9)) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("most_bytes", [0, 2**40], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", ["rope_theta", "rms_norm_eps"])
def test_a_wrong_config_is_not_published(
    checkpoint: Path, tmp_path: Path, name: str, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = convert(checkpoint, tmp_path / "out")
    monkeypatch.setattr(parity, "WHOLE_BYTES", most_bytes)
    source = source_of(checkpoint)
    assert check_parity(source, out)["passed"] is True
    values = json.loads((out / "config.json").read_text())
    if name == "rope_theta":
        values["rope_parameters"][name] = 99.0
    values[name] = {"rope_theta": 99.0, "rms_norm_eps": 0.1}[name]
    (out / "config.json").write_text(json.dumps(values))
    with pytest.raises(NumericsError, match=r"in memory within 0.0001, found (0|[0-9.]+e-0[5-9]); read back"):
        check_parity(source, out)
