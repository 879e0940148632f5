"""Packed documents in `lrc train` and `lrc sft`: what the pair gets of them, and who can't keep them apart.

`tests/models/test_isolation.py` has what positions do to logits, family by family.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.config import load_recipe
from lrc.errors import ConfigError
from lrc.models.pair_model import PairModel, StepCounts
from lrc.models.tiny import random_model
from lrc.verbs.sft_inputs import check_inputs
from lrc.verbs.train import train
from tests.models.family_configs import FAMILY_CONFIGS
from tests.sft.tiny_chats import chat_tokenizer, sft_root
from tests.tiny import WORDS, save_tokenizer, tiny_recipe

BOS = WORDS.index("<bos>")


def write_texts(path: Path) -> None:
    """Write documents of one to four words, each shorter than a block of 16 tokens."""
    texts = [" ".join(f"w{(row + word) % 44}" for word in range(1 + row % 4)) for row in range(40)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")


def watch_batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, StepCounts, Tensor | None]]:
    """Note what each training forward pass gets: ids, labels, counts, positions."""
    seen: list[tuple[Tensor, Tensor, StepCounts, Tensor | None]] = []
    monkeypatch.setattr("lrc.verbs.train.require_family", lambda config: None)  # it runs pairs of its own
    forward = PairModel.forward

    def watched(
        self: PairModel, input_ids: Tensor, labels: Tensor, valid: Tensor, counts: StepCounts, positions: Any = None
    ) -> Any:
        seen.append((input_ids, labels, counts, positions))
        return forward(self, input_ids, labels, valid, counts, positions)

    monkeypatch.setattr(PairModel, "forward", watched)
    return seen


def counted_anew(ids: Tensor) -> Tensor:
    """Count positions from 0 at the front of each row and at each document's first token."""
    rows = []
    for row in ids.tolist():
        counted: list[int] = []
        for token in row:
            counted.append(0 if token == BOS or not counted else counted[-1] + 1)
        rows.append(counted)
    return torch.tensor(rows)


@pytest.mark.parametrize("is_masked", [True, False], ids=["apart", "in one stream"])
def test_packed_documents_are_kept_apart_as_the_recipe_says(
    tmp_path: Path, is_masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"start__method": "random", "data__held_out": None, "data__document_masking": is_masked}
    recipe = tiny_recipe(tmp_path, train__max_steps=1, **changes)
    write_texts(tmp_path / "train.jsonl")
    seen = watch_batches(monkeypatch)
    train(recipe)
    ((ids, labels, counts, positions),) = seen
    borders = ids[:, 1:] == BOS
    assert ids.shape == (4, 16)
    assert int(borders.sum()) > 4
    expected = torch.full_like(ids, -100)
    expected[:, :-1] = ids[:, 1:].masked_fill(borders, -100) if is_masked else ids[:, 1:]
    assert torch.equal(labels, expected)
    assert counts.labels == int((expected != -100).sum())
    if is_masked:
        assert positions is not None
        assert torch.equal(positions, counted_anew(ids))
    else:
        assert positions is None


def test_a_teacher_that_carries_documents_on_is_refused_unless_they_may_meet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "falcon"
    random_model(FAMILY_CONFIGS["falcon_h1"]()).save_pretrained(teacher)
    save_tokenizer(teacher)
    said = r"falcon_h1 carries one document into the next.*Set data\.document_masking=false"
    with pytest.raises(ConfigError, match=said):
        train(tiny_recipe(tmp_path, teacher=str(teacher)), dry_run=True)
    train(tiny_recipe(tmp_path, teacher=str(teacher), data__document_masking=False), dry_run=True)
    assert capsys.readouterr().err.endswith("blocks: good\n")
    assert not (tmp_path / "run").exists()


def test_a_student_that_carries_chats_on_is_fine_tuned_unpacked_alone(tmp_path: Path) -> None:
    root = sft_root(tmp_path)
    random_model(FAMILY_CONFIGS["falcon_h1"]()).save_pretrained(root / "falcon")
    chat_tokenizer().save_pretrained(root / "falcon")
    named = f"sft.model={root / 'falcon'}"
    said = r"sft\.packing must keep documents apart, but falcon_h1 carries one .*Set sft\.packing=false"
    with pytest.raises(ConfigError, match=said):
        check_inputs(load_recipe(root / "recipe.yaml", (named, "sft.packing=true")), resume=None, overwrite=False)
    inputs = check_inputs(load_recipe(root / "recipe.yaml", (named,)), resume=None, overwrite=False)
    assert inputs.student == root / "falcon"
