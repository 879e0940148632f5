"""The scorecard's parts against plain recomputations: windows, bytes, cards, continuations, scored text."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lrc.clone.head import softcapped
from lrc.data.block import Block
from lrc.data.blocks import collate
from lrc.errors import NumericsError
from lrc.evaluation import scorecard
from lrc.evaluation.scorecard import (
    PROMPTS,
    card,
    continuations,
    float32_head,
    score_text,
    text_bytes,
    text_windows,
)
from lrc.models.head_reader import HeadReader
from lrc.models.tiny import random_model
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.stock_student import num_hooks, recorded
from tests.tiny import tiny_teacher

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
VOCABULARY = len(SPECIAL) + 256


def byte_tokenizer() -> Any:
    """Give each byte of UTF-8 a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def windows_of(*rows: list[int], special_ids: set[int]) -> list[tuple[Tensor, Tensor]]:
    return text_windows([collate([Block(np.asarray(row), "general")]) for row in rows], special_ids)


# ---- windows and bytes


def test_special_tokens_are_read_but_not_predicted() -> None:
    ((ids, labels),) = windows_of([1, 9, 2, 1, 7, 8, 2], special_ids={0, 1, 2, 3})
    assert ids.tolist() == [[1, 9, 2, 1, 7, 8, 2]]
    assert labels.tolist() == [[9, -100, -100, 7, 8, -100, -100]]


def test_without_special_tokens_every_next_token_is_predicted() -> None:
    ((_, labels),) = windows_of([1, 9, 2, 5], special_ids=set())
    assert labels.tolist() == [[9, 2, 5, -100]]


def test_windows_leave_their_batches_as_they_were() -> None:
    batch = collate([Block(np.asarray([1, 9, 2, 5]), "general")])
    text_windows([batch], {1, 2})
    assert batch.labels.tolist() == [[9, 2, 5, -100]]


@pytest.mark.parametrize(
    "texts",
    [["plain"], ["naïve café", "— 日本 —"], [" two  spaces , kept . ", "it 's"], ["", "a"]],
    ids=["ascii", "many bytes a character", "spaces before points", "an empty row"],
)
def test_bytes_are_those_of_the_text_between_special_tokens(texts: list[str]) -> None:
    tokenizer = byte_tokenizer()
    ids = [1]
    for text in texts:
        ids += [*tokenizer(text).input_ids, 2]
    windows = windows_of(ids, special_ids=set(tokenizer.all_special_ids))
    assert text_bytes(windows, tokenizer) == sum(len(text.encode()) for text in texts)


def test_bytes_of_windows_add_up_and_their_first_tokens_are_no_text() -> None:
    tokenizer = byte_tokenizer()
    rows = [tokenizer(text).input_ids for text in ("first", "the second")]
    windows = windows_of(*rows, special_ids=set(tokenizer.all_special_ids))
    assert text_bytes(windows, tokenizer) == len("irst") + len("he second")


def test_a_window_without_labels_has_no_bytes() -> None:
    tokenizer = byte_tokenizer()
    assert text_bytes(windows_of([1, 2, 1], special_ids={1, 2}), tokenizer) == 0


# ---- the card


def saved(folder: Path, **options: Any) -> Any:
    model = tiny_teacher("llama", tie_word_embeddings=True)
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "10KB"}], ids=["one file", "shards"])
def test_a_card_holds_size_loss_and_speed(tmp_path: Path, shards: dict[str, str]) -> None:
    model = saved(tmp_path, **shards)
    found = card(model, tmp_path, name="tiny", cross_entropy=2.0, positions=30, num_bytes=120)
    speeds = [found.pop(f"{phase}_tokens_per_second") for phase in ("prefill", "decode")]
    assert all(speed > 0 for speed in speeds)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) is bool(shards)
    layer = 32 * 24 * 2 + 32 * 12 * 2 + 3 * 32 * 56 + 2 * 32
    assert found == {
        "name": "tiny",
        "cross_entropy": 2.0,
        "perplexity": pytest.approx(math.e**2),
        "bits_per_byte": pytest.approx(2.0 * 30 / (120 * math.log(2))),
        "parameters": 48 * 32 + 2 * layer + 32,
        "file_size_bytes": sum(len(path.read_bytes()) for path in files),
    }


def test_a_card_of_a_hopeless_model_or_of_no_text_is_still_finite(tmp_path: Path) -> None:
    model = saved(tmp_path)
    found = card(model, tmp_path, name="tiny", cross_entropy=1e4, positions=3, num_bytes=0)
    assert found["perplexity"] == math.exp(700)
    assert found["bits_per_byte"] == pytest.approx(3e4 / math.log(2))


def test_speeds_are_medians_of_three_rounds_of_one_prefill_and_greedy_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(tmp_path)
    seconds = iter([4.0, 1.0, 1.0, 6.0, 2.0, 3.0])  # prefill and decoding of each round
    readings = (reading for spent in seconds for reading in (100.0, 100.0 + spent))
    monkeypatch.setattr(scorecard, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    calls: list[list[int]] = []

    def keep(_: Any, args: Any, keywords: dict[str, Any], output: Any) -> None:
        calls.append([keywords["input_ids"].tolist()[0], int(output.logits[0, -1].argmax())])

    handle = model.register_forward_hook(keep, with_kwargs=True)
    found = card(model, tmp_path, name="tiny", cross_entropy=1.0, positions=1, num_bytes=1)
    handle.remove()
    assert found["prefill_tokens_per_second"] == 256 / 2
    assert found["decode_tokens_per_second"] == 24 / 3
    assert len(calls) == 3 * 25
    for first in (0, 25, 50):
        assert len(calls[first][0]) == 256
        for step in range(first + 1, first + 25):
            assert calls[step][0] == [calls[step - 1][1]]


# ---- continuations


def greedy(model: Any, ids: list[int], new_tokens: int, eos: int) -> list[int]:
    """Append the best next token, without a cache, until the end token or the limit."""
    written: list[int] = []
    while len(written) < new_tokens and eos not in written:
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *written]])).logits
        written.append(int(logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize("ends_early", [False, True], ids=["full length", "ends early"])
def test_continuations_are_an_argmax_loop_s(ends_early: bool) -> None:
    tokenizer = byte_tokenizer()
    model = tiny_teacher("llama", vocab_size=VOCABULARY, max_position_embeddings=128)
    eos = 2
    if ends_early:
        eos = greedy(model, tokenizer(PROMPTS[1]).input_ids, 4, eos)[-1]
        model.generation_config.eos_token_id = eos
    found = continuations(model, tokenizer, count=3, new_tokens=12)
    assert [prompt for prompt, _ in found] == list(PROMPTS[:3])
    lengths = []
    for prompt, text in found:
        written = greedy(model, tokenizer(prompt).input_ids, 12, eos)
        lengths.append(len(written))
        assert text == tokenizer.decode([token for token in written if token not in range(4)])
    assert (min(lengths) < 12) is ends_early


def test_continuations_follow_no_generation_settings_of_the_folder() -> None:
    tokenizer = byte_tokenizer()
    model: Any = tiny_teacher("llama", vocab_size=VOCABULARY, max_position_embeddings=128)
    plain = continuations(model, tokenizer, count=1, new_tokens=6)
    written = greedy(model, tokenizer(PROMPTS[0]).input_ids, 6, 2)
    model.generation_config.update(suppress_tokens=written[:1], repetition_penalty=3.0)
    assert continuations(model, tokenizer, count=1, new_tokens=6) == plain


def test_no_more_continuations_than_prompts_are_made() -> None:
    model = tiny_teacher("llama", vocab_size=VOCABULARY)
    assert continuations(model, byte_tokenizer(), count=0, new_tokens=1) == []
    assert len(continuations(model, byte_tokenizer(), count=99, new_tokens=1)) == len(PROMPTS)


# ---- scored text


def text() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(4, 48, (length,), generator=generator).tolist() for length in (16, 12, 7)]
    rows[0][5] = 2
    return windows_of(*rows, special_ids={0, 1, 2, 3})


def plain_ranks(model: Any) -> list[float]:
    """Effective ranks from the singular values of all states, each divided by its root mean square."""
    names = ["model.layers.0", "model.layers.1"]
    with recorded(model, names) as calls:
        for ids, _ in text():
            model(ids)
    ranks = []
    for name in names:
        states = torch.cat([output.flatten(0, -2) for _, output in calls[name]])
        values = torch.linalg.svdvals(states / states.square().mean(-1, keepdim=True).sqrt())
        shares = values / values.sum()
        ranks.append(float(torch.exp(-(shares * shares.log()).sum())))
    return ranks


def test_student_and_teacher_are_scored_on_the_same_positions() -> None:
    student, teacher = (tiny_teacher("llama", seed=seed, hidden_size=size) for seed, size in ((1, 16), (0, 32)))
    reported: list[tuple[int, int]] = []
    agreement, ranks = score_text(student, teacher, text(), lambda *report: reported.append(report))
    student, teacher = student.double(), teacher.double()
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for ids, labels in text():
        kept = labels != -100
        rows.append((student(ids).logits[kept], teacher(ids).logits[kept], labels[kept]))
    ours, theirs, labels = (torch.cat(parts) for parts in zip(*rows, strict=True))
    p, q = ours.softmax(-1), theirs.softmax(-1)
    assert agreement.positions == 15 + 11 + 6 - 1
    assert agreement.kl == pytest.approx(float((q * (q / p).log()).sum(-1).mean()), rel=1e-4)
    picked = [made.gather(-1, labels[:, None]).log().mean() for made in (p, q)]
    assert agreement.cross_entropy == pytest.approx(-float(picked[0]), rel=1e-4)
    assert agreement.teacher_cross_entropy == pytest.approx(-float(picked[1]), rel=1e-4)
    assert agreement.top1_agreement == float((p.argmax(-1) == q.argmax(-1)).double().mean())
    assert ranks["student"] == pytest.approx(plain_ranks(student), rel=1e-3)
    assert ranks["teacher"] == pytest.approx(plain_ranks(teacher), rel=1e-3)
    assert reported == [(1, 3), (2, 3), (3, 3)]


def test_without_a_teacher_a_model_is_its_own() -> None:
    model = tiny_teacher("llama")
    agreement, ranks = score_text(model, None, text(), lambda *_: None)
    assert agreement.kl == pytest.approx(0, abs=1e-6)
    assert agreement.top1_agreement == agreement.top5_agreement == 1
    assert agreement.cross_entropy == agreement.teacher_cross_entropy > 0
    assert ranks["teacher"] is None
    assert ranks["student"] == pytest.approx(plain_ranks(model.double()), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi", "granite", "cohere"])
def test_logits_of_a_bfloat16_model_are_formed_in_float32(family: str) -> None:
    model: Any = random_model(FAMILY_CONFIGS[family]()).to(torch.bfloat16)
    reader = HeadReader(model)
    ids = torch.randint(3, 48, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), reader.captured() as states, float32_head(model):
        found = model(input_ids=ids, use_cache=False).logits
    exact = softcapped(reader.inputs(states[0].float()) @ reader.matrix().float().T, reader.softcap)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))
    assert num_hooks(model) == 0


def test_a_bfloat16_model_is_scored_on_logits_that_are_not_rounded() -> None:
    model: Any = tiny_teacher("llama").bfloat16()
    model.lm_head.weight.mul_(16)
    losses = []
    for ids, labels in text():
        with HeadReader(model).captured() as states:
            model(ids, use_cache=False)
        kept = labels[0] != -100
        log_p = (states[0][0].double() @ model.lm_head.weight.double().T).log_softmax(-1)[kept]
        losses.append(-log_p.gather(-1, labels[0][kept][:, None]))
    agreement, _ = score_text(model, None, text(), lambda *_: None)
    assert agreement.cross_entropy == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert agreement.top1_agreement == 1


def test_windows_are_compared_a_chunk_of_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = tiny_teacher("llama", seed=1), tiny_teacher("llama")
    whole, _ = score_text(student, teacher, text(), lambda *_: None)
    monkeypatch.setattr(scorecard, "chunk_positions", lambda vocabulary, *, positions: 5)
    chunked, _ = score_text(student, teacher, text(), lambda *_: None)
    assert chunked.summary() == pytest.approx(whole.summary(), rel=1e-5)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_logits_that_are_not_finite_are_refused_and_name_the_model(role: str) -> None:
    models: dict[str, Any] = {"student": tiny_teacher("llama", seed=1), "teacher": tiny_teacher("llama")}
    models[role].model.norm.weight[0] = math.nan
    with pytest.raises(NumericsError, match=rf"The {role}'s logits must be finite.* at 16 of 16 positions"):
        score_text(models["student"], models["teacher"], text(), lambda *_: None)
    assert num_hooks(models["student"]) == num_hooks(models["teacher"]) == 0


def test_scoring_leaves_no_hooks() -> None:
    student, teacher = tiny_teacher("llama", seed=1), tiny_teacher("llama")
    score_text(student, teacher, text(), lambda *_: None)
    assert num_hooks(student) == num_hooks(teacher) == 0
