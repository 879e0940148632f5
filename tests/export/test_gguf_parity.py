"""What decides whether a GGUF file is published, with answers of llama.cpp made up here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrc.errors import NumericsError
from lrc.export import gguf_parity
from lrc.export.gguf_parity import check_gguf_parity
from lrc.export.llama_cpp import LlamaCppAnswers
from lrc.export.probe import WINDOW_TOKENS, chaotic_positions, log_probabilities, probe_windows
from lrc.export.probe_texts import ODD_TEXT, TEXTS
from lrc.models.teacher import load_model, load_tokenizer
from tests.export.bpe_student import bpe_student


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bpe_student(tmp_path_factory.mktemp("parity") / "student")


@pytest.fixture(scope="module")
def exact(student: Path) -> Tensor:
    model = load_model(str(student), dtype=torch.float32, device=torch.device("cpu"))
    return log_probabilities(model, probe_windows(load_tokenizer(student), model.config.vocab_size))


def check(
    student: Path, found: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch, *, wrong_token: bool = False
) -> dict[str, Any]:
    tokenizer = load_tokenizer(student)
    tokens = [tokenizer.encode(text, add_special_tokens=False) for text in (*TEXTS, ODD_TEXT)]
    if wrong_token:
        tokens[-1][2] += 1
    answers = LlamaCppAnswers(log_probabilities=found, tokens=tokens)
    monkeypatch.setattr(gguf_parity, "ask_llama_cpp", lambda *arguments, **options: answers)
    return check_gguf_parity(student, Path("student.gguf"), kind=kind, vocab_size=found.shape[1])


def test_equal_logits_pass(student: Path, exact: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = check(student, exact, "f32", monkeypatch)
    assert facts["passed"] is True
    assert facts["max_abs_difference"] == 0.0
    assert facts["tokenised_alike"] is True


@pytest.mark.parametrize(("kind", "shift", "passes"), [("f32", 9e-4, True), ("f32", 1.1e-3, False), ("f16", 1.0, True)])
def test_one_logit_decides_for_f32_alone(
    student: Path, exact: Tensor, kind: str, shift: float, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = exact.clone()
    found[5, int(exact[5].argmin())] -= shift
    if passes:
        check(student, found, kind, monkeypatch)
    else:
        with pytest.raises(NumericsError, match="max_abs_difference at most"):
            check(student, found, kind, monkeypatch)


@pytest.mark.parametrize(("flips", "passes"), [(3, True), (4, False)])  # of 384 positions of text
def test_first_choices_decide_for_f16(
    student: Path, exact: Tensor, flips: int, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = exact.clone()
    for row in range(flips):
        found[row, int(exact[row].argmin())] = 0.0
    if passes:
        check(student, found, "f16", monkeypatch)
    else:
        with pytest.raises(NumericsError, match=r"top1_agreement at least 0\.99, found 0\.98"):
            check(student, found, "f16", monkeypatch)


@pytest.mark.parametrize(("kind", "passes"), [("q8_0", False), ("q4_k_m", True)])
def test_kl_decides_for_the_quantised(
    student: Path, exact: Tensor, kind: str, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = 0.4 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = (exact + noise).log_softmax(-1)  # KL about 0.4 ** 2 / 2
    if passes:
        check(student, found, kind, monkeypatch)
    else:
        with pytest.raises(NumericsError, match=r"kl at most 0\.01, found 0\.0[5-9]"):
            check(student, found, kind, monkeypatch)


@pytest.mark.parametrize("kind", ["f16", "q8_0", "f32"])
def test_random_ids_count_for_f32_alone(
    student: Path, exact: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = exact.clone()
    num_text = len(TEXTS) * WINDOW_TOKENS
    found[num_text:] = found[num_text:].flip(-1)
    if kind == "f32":
        with pytest.raises(NumericsError, match="max_abs_difference at most"):
            check(student, found, kind, monkeypatch)
        return
    facts = check(student, found, kind, monkeypatch)
    assert facts["text"] == {"max_abs_difference": 0.0, "kl": 0.0, "top1_agreement": 1.0, "positions": num_text}
    assert (facts["positions"], facts["kl"] > 0.01) == (512, True)


def test_logits_that_are_no_numbers_never_pass(student: Path, exact: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.full_like(exact, float("nan"))
    for kind in ("f32", "f16", "q8_0"):
        with pytest.raises(NumericsError):
            check(student, found, kind, monkeypatch)


def test_text_that_is_split_otherwise_is_named(student: Path, exact: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NumericsError, match=r"token 2 of student\.gguf is .*wrong pre-tokenizer"):
        check(student, exact, "f32", monkeypatch, wrong_token=True)


def settle_all_but(chaotic: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the check find these positions chaotic, window by window."""
    rest = iter(chaotic.split(WINDOW_TOKENS))
    monkeypatch.setattr(gguf_parity, "chaotic_positions", lambda *arguments, **options: next(rest))


@pytest.mark.parametrize(("many", "passes"), [(1, True), (51, True), (52, False)])  # a tenth of 512
def test_positions_that_float32_does_not_settle_are_left_out_of_f32s_largest_difference(
    student: Path, exact: Tensor, many: int, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_all_but(torch.arange(len(exact)) < many, monkeypatch)
    found = exact.clone()
    found[0] = found[0].flip(0)
    if not passes:
        with pytest.raises(NumericsError, match=f"at {many} of 512 positions"):
            check(student, found, "f32", monkeypatch)
        return
    facts = check(student, found, "f32", monkeypatch)
    assert (facts["chaotic_positions"], facts["positions"]) == (many, 512)
    assert facts["max_abs_difference"] == pytest.approx(float((exact[0].flip(0) - exact[0]).abs().max()))
    assert facts["settled"] == {
        "max_abs_difference": 0.0,
        "kl": 0.0,
        "top1_agreement": 1.0,
        "positions": 512 - many,
    }


@pytest.mark.parametrize(("kind", "name"), [("q8_0", "kl"), ("f16", "top1_agreement")])
def test_a_chaotic_position_counts_for_every_other_kind(
    student: Path, exact: Tensor, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chaotic = torch.arange(len(exact)) < 4
    found = exact.clone()
    found[chaotic] = (30 * torch.nn.functional.one_hot(found[chaotic].argmin(-1), exact.shape[1])).double()
    found = found.log_softmax(-1)
    settle_all_but(chaotic, monkeypatch)
    with pytest.raises(NumericsError, match=rf"{name} at .* found .*'chaotic_positions': 4"):
        check(student, found, kind, monkeypatch)
    settle_all_but(chaotic, monkeypatch)
    assert check(student, found, "f32", monkeypatch)["passed"] is True  # these positions alone are spoilt


def test_one_chaotic_position_can_spoil_the_kl_of_q8_0(
    student: Path, exact: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = exact.clone()
    found[0, :-1] = -30.0
    found[0] = found[0].log_softmax(-1)
    settle_all_but(torch.arange(len(exact)) == 0, monkeypatch)
    with pytest.raises(NumericsError, match=r"kl at most 0\.01, found 0\.04"):
        check(student, found, "q8_0", monkeypatch)


def test_a_student_of_chaos_alone_is_judged_by_all_positions(
    student: Path, exact: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_all_but(torch.ones(len(exact), dtype=torch.bool), monkeypatch)
    facts = check(student, exact, "q8_0", monkeypatch)
    assert (facts["kl"], facts["settled"]) == (0.0, {"positions": 0})


def test_chaos_is_found_by_a_millionth_of_noise(student: Path, exact: Tensor) -> None:
    model = load_model(str(student), dtype=torch.float32, device=torch.device("cpu"))
    sequences = probe_windows(load_tokenizer(student), model.config.vocab_size)
    assert not chaotic_positions(model, sequences, exact).any()
    first = model.get_submodule("model.layers.0")

    def tear(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + 1e3 * torch.sin(1e5 * output)  # what the stream's last bits decide

    handle = first.register_forward_hook(tear)
    try:
        expected = log_probabilities(model, sequences)
        chaotic = chaotic_positions(model, sequences, expected)
    finally:
        handle.remove()
    assert chaotic.double().mean() > 0.9
