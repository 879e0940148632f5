"""`lrc evaluate`: every number of results.json, recomputed plainly in float64, and what it refuses."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrc.config import EvaluateConfig
from lrc.errors import CheckpointError, ConfigError, DataError, NumericsError
from lrc.models.checkpoint import versions
from lrc.models.folder import weights_hash
from lrc.models.teacher import load_config
from lrc.verbs import evaluate as module
from lrc.verbs.evaluate import evaluate
from lrc.verbs.task_settings import TaskSettings
from tests.tiny import WORDS, save_tokenizer, teacher_folder, tiny_teacher, write_rows

SETTINGS = EvaluateConfig(tokens=60, sequence_length=12, samples=2, sample_tokens=5)
SPECIAL_ROW = [1, 7, 8, 2, 1, 9, 3, 10, 2]
NUM_WINDOWS = 6
"""9 + 5 * 12 tokens are the first to reach 60."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A teacher, a student, and rows of which the first has special tokens; both models compute in float32."""
    root = tmp_path_factory.mktemp("evaluate")
    teacher_folder(root / "teacher")
    teacher_folder(root / "student", seed=3, hidden_size=16)
    rows = write_rows(root / "rows.jsonl", rows=7)
    rows.write_text(json.dumps({"input_ids": SPECIAL_ROW}) + "\n" + rows.read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "choose_dtype", lambda wanted, device: torch.float32)
        patch.setattr(module, "choose_device", lambda wanted: torch.device("cpu"))
        yield root


def evaluated(root: Path, out: Path, student: str = "student", teacher: str | None = "teacher") -> dict[str, Any]:
    reference = None if teacher is None else str(root / teacher)
    path = evaluate(root / student, out=out, held_out=str(root / "rows.jsonl"), teacher=reference, settings=SETTINGS)
    assert path == out / "results.json"
    assert [entry.name for entry in out.iterdir()] == ["results.json"]
    results: dict[str, Any] = json.loads(path.read_text())
    return results


@pytest.fixture(scope="module")
def results(root: Path) -> dict[str, Any]:
    return evaluated(root, root / "with_teacher")


def scored_rows(root: Path) -> list[list[int]]:
    lines = (root / "rows.jsonl").read_text().splitlines()
    return [json.loads(line)["input_ids"][:12] for line in lines[:NUM_WINDOWS]]


def test_the_file_has_the_documented_keys(root: Path, results: dict[str, Any]) -> None:
    card = {"name", "cross_entropy", "perplexity", "bits_per_byte", "parameters", "file_size_bytes"}
    card |= {"prefill_tokens_per_second", "decode_tokens_per_second"}
    assert {key: set(value) if isinstance(value, dict) else len(value) for key, value in results.items()} == {
        "held_out": {"source", "positions", "bytes", "sequence_length"},
        "teacher": card,
        "student": card | {"kl_to_teacher", "top1_agreement", "top5_agreement"},
        "effective_rank": {"teacher", "student"},
        "hidden_size": {"teacher", "student"},
        "samples": 2,
        "student_hash": 64,
        "versions": set(versions()),
        "machine": {"device", "threads", "dtype"},
    }
    assert results["student_hash"] == weights_hash(root / "student")
    assert results["versions"] == versions()
    assert results["machine"] == {"device": "cpu", "threads": torch.get_num_threads(), "dtype": "float32"}
    assert results["hidden_size"] == {"teacher": 32, "student": 16}


def test_losses_and_agreement_are_those_of_a_plain_loop_in_float64(root: Path, results: dict[str, Any]) -> None:
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(root / name, dtype=torch.float64) for name in ("student", "teacher")
    )
    positions = num_bytes = top1 = top5 = 0
    kl = losses = teacher_losses = 0.0
    for row in scored_rows(root):
        with torch.no_grad():
            log_s, log_t = (model(torch.tensor([row])).logits[0].log_softmax(-1) for model in (student, teacher))
        kept = [(place, token) for place, token in enumerate(row[1:]) if token > 3]  # 0 to 3 are special
        num_bytes += len(" ".join(WORDS[token] for _, token in kept).encode())
        for place, token in kept:
            positions += 1
            losses -= float(log_s[place, token])
            teacher_losses -= float(log_t[place, token])
            kl += sum(math.exp(t) * (t - s) for s, t in zip(log_s[place].tolist(), log_t[place].tolist(), strict=True))
            ranked = sorted(range(48), key=lambda word, scores=log_s[place]: -float(scores[word]))
            best = int(log_t[place].argmax())
            top1 += ranked[0] == best
            top5 += best in ranked[:5]
    assert positions == 4 + 5 * 11
    held_out = {"source": str(root / "rows.jsonl"), "positions": positions, "bytes": num_bytes, "sequence_length": 12}
    assert results["held_out"] == held_out
    card = results["student"]
    assert card["kl_to_teacher"] == pytest.approx(kl / positions, rel=1e-4)
    assert (card["top1_agreement"], card["top5_agreement"]) == (top1 / positions, top5 / positions)
    for found, loss in ((card, losses), (results["teacher"], teacher_losses)):
        assert found["cross_entropy"] == pytest.approx(loss / positions, rel=1e-4)
        assert found["perplexity"] == pytest.approx(math.exp(loss / positions), rel=1e-3)
        assert found["bits_per_byte"] == pytest.approx(loss / math.log(2) / num_bytes, rel=1e-4)


def test_cards_name_and_measure_their_own_folder(root: Path, results: dict[str, Any]) -> None:
    for name, width in (("student", 16), ("teacher", 32)):
        card = results[name]
        model = AutoModelForCausalLM.from_pretrained(root / name)
        assert card["name"] == str(root / name)
        assert card["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert card["file_size_bytes"] == (root / name / "model.safetensors").stat().st_size
        assert min(card["prefill_tokens_per_second"], card["decode_tokens_per_second"]) > 0
        assert len(results["effective_rank"][name]) == 2
        assert all(1 < rank <= width for rank in results["effective_rank"][name])


def test_samples_are_what_each_model_continues_greedily(root: Path, results: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(root / "student")
    for name in ("student", "teacher"):
        model = AutoModelForCausalLM.from_pretrained(root / name)
        for sample in results["samples"]:
            ids = tokenizer(sample["prompt"])["input_ids"]
            start = len(ids)
            while len(ids) < start + SETTINGS.sample_tokens and (len(ids) == start or ids[-1] != 2):
                with torch.no_grad():
                    ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            assert sample[name] == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_a_teacher_scored_against_itself_is_its_equal(root: Path, tmp_path: Path) -> None:
    results = evaluated(root, tmp_path / "out", student="teacher")
    student, teacher = results["student"], results["teacher"]
    assert student["kl_to_teacher"] == pytest.approx(0, abs=1e-6)
    assert student["top1_agreement"] == student["top5_agreement"] == 1.0
    for key in ("cross_entropy", "bits_per_byte", "parameters", "file_size_bytes"):
        assert student[key] == teacher[key]
    assert results["effective_rank"]["student"] == results["effective_rank"]["teacher"]
    assert all(sample["student"] == sample["teacher"] for sample in results["samples"])


def test_without_a_teacher_the_students_own_numbers_stay(root: Path, results: dict[str, Any], tmp_path: Path) -> None:
    alone = evaluated(root, tmp_path / "out", teacher=None)
    assert alone["teacher"] is alone["effective_rank"]["teacher"] is alone["hidden_size"]["teacher"] is None
    assert {alone["student"][key] for key in ("kl_to_teacher", "top1_agreement", "top5_agreement")} == {None}
    for key in ("cross_entropy", "perplexity", "bits_per_byte", "parameters"):
        assert alone["student"][key] == results["student"][key]
    assert alone["held_out"] == results["held_out"]
    wanted = [{**sample, "teacher": None} for sample in results["samples"]]
    assert alone["samples"] == wanted


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where the expensive part begins."""
    monkeypatch.setattr(module, "load_model", lambda *args, **options: pytest.fail("a model is loaded"))


def check(model: Path, out: Path, held_out: Path, **options: Any) -> Path:
    return evaluate(model, out=out, held_out=str(held_out), **{"settings": SETTINGS, **options})


@pytest.mark.usefixtures("no_models")
def test_a_dry_run_checks_and_writes_nothing(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, held_out = tmp_path / "out", root / "rows.jsonl"
    assert check(root / "student", out, held_out, teacher=str(root / "teacher"), dry_run=True) == out / "results.json"
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == f"dry run: {NUM_WINDOWS} windows of {held_out}: good\n"


@pytest.mark.usefixtures("no_models")
def test_models_of_two_vocabularies_are_not_compared(root: Path, tmp_path: Path) -> None:
    other = teacher_folder(tmp_path / "other", vocab_size=50)
    with pytest.raises(ConfigError, match="must share a vocabulary") as caught:
        check(root / "student", tmp_path / "out", root / "rows.jsonl", teacher=str(other))
    assert str(other) in str(caught.value)


@pytest.mark.usefixtures("no_models")
def test_a_model_without_a_tokenizer_is_refused(root: Path, tmp_path: Path) -> None:
    tiny_teacher("llama").save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"bare must hold a tokenizer"):
        check(tmp_path / "bare", tmp_path / "out", root / "rows.jsonl")


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("ids", [[1, 2, 1, 0, 3], [9], [9, 2]])
def test_rows_without_text_to_score_are_refused(root: Path, tmp_path: Path, ids: list[int]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"input_ids": ids}) + "\n")
    with pytest.raises(DataError, match=r"rows\.jsonl holds no text to score"):
        check(root / "student", tmp_path / "out", tmp_path / "rows.jsonl")


@pytest.mark.usefixtures("no_models")
def test_earlier_results_are_refused_before_anything_is_looked_at(root: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("old")
    with pytest.raises(ConfigError, match=r"results\.json exists.*--overwrite"):
        check(tmp_path / "no model", tmp_path, tmp_path / "no rows", dry_run=True)
    assert (tmp_path / "results.json").read_text() == "old"


def test_results_that_cannot_be_written_leave_the_earlier_ones(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "results.json").write_text("old")
    monkeypatch.setattr(module, "_score", lambda *args: {"held_out": {"positions": 1, "bytes": 2}})
    monkeypatch.setattr(module, "write_beside", full)
    with pytest.raises(CheckpointError, match=r"results\.json can't be written.*No space left.*untouched"):
        check(root / "student", tmp_path, root / "rows.jsonl", overwrite=True)
    assert (tmp_path / "results.json").read_text() == "old"


def test_a_student_whose_logits_are_not_finite_has_no_results(root: Path, tmp_path: Path) -> None:
    model: Any = tiny_teacher("llama", hidden_size=16)
    model.model.embed_tokens.weight[:, 0] = math.nan
    model.save_pretrained(tmp_path / "broken")
    save_tokenizer(tmp_path / "broken")
    with pytest.raises(NumericsError, match=r"The student's logits must be finite.* at 9 of 9 positions"):
        check(tmp_path / "broken", tmp_path / "out", root / "rows.jsonl")
    assert not (tmp_path / "out").exists()


def test_a_score_that_is_not_finite_is_not_written(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results.json").write_text("old")
    monkeypatch.setattr(module, "_score", lambda *args: {"held_out": {"positions": 1, "bytes": 2}, "kl": math.nan})
    with pytest.raises(NumericsError, match=r"Every score in .*results\.json must be finite"):
        check(root / "student", tmp_path, root / "rows.jsonl", overwrite=True)
    assert (tmp_path / "results.json").read_text() == "old"


@pytest.mark.usefixtures("no_models")
def test_a_file_in_the_place_of_the_folder_is_refused_at_once(root: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises((ConfigError, CheckpointError), match="out"):
        check(root / "student", tmp_path / "out", root / "rows.jsonl", dry_run=True)


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(("key", "value"), [("samples", -1), ("sequence_length", -5), ("tokens", 0)])
def test_a_setting_out_of_range_is_refused(root: Path, tmp_path: Path, key: str, value: int) -> None:
    settings = EvaluateConfig(**{key: value})
    with pytest.raises(ConfigError, match=key):
        check(root / "student", tmp_path / "out", root / "rows.jsonl", settings=settings, dry_run=True)


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"held_out": "no_rows.jsonl"}, r"'no_rows\.jsonl' matches no file"),
        ({"held_out": "embedded:rows"}, "The embedded texts are"),
        ({"tasks": TaskSettings(tasks="seed,,piqa")}, "separated by commas"),
        ({"tasks": TaskSettings(tasks="humaneval")}, "--allow-code"),
        ({"teacher": "no/such/folder"}, "'no/such/folder' is neither"),
    ],
)
def test_names_are_checked_before_a_model_is_fetched(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(module, "resolve_folder", lambda *args, **options: pytest.fail("a model is fetched"))
    chosen: dict[str, Any] = {"held_out": str(root / "rows.jsonl"), "teacher": "owner/teacher", **options}
    with pytest.raises((ConfigError, DataError), match=said):
        evaluate(root / "student", out=tmp_path / "out", settings=SETTINGS, **chosen)


@pytest.mark.usefixtures("no_models")
def test_the_hubs_weights_are_fetched_when_all_else_is_right(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def resolve(source: str, *, weights: bool = True) -> Path:
        asked.append((Path(source).name, weights))
        return root / Path(source).name

    monkeypatch.setattr(module, "resolve_folder", resolve)
    monkeypatch.setattr(module, "load_config", lambda source: load_config(str(root / Path(source).name)))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"input_ids": [99]}) + "\n")
    with pytest.raises(DataError, match="token id 99"):
        check(root / "student", tmp_path / "out", tmp_path / "rows.jsonl", teacher="owner/teacher")
    assert asked == [("student", True), ("teacher", False)]
    check(root / "student", tmp_path / "out", root / "rows.jsonl", teacher="owner/teacher", dry_run=True)
    assert asked[2:] == [("student", True), ("teacher", False), ("student", True), ("teacher", True)]


@pytest.mark.usefixtures("no_models")
def test_the_embedded_teacher_can_be_scored(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    embedded = "embedded:smollm2-135m-instruct"
    monkeypatch.setattr(module, "locate_teacher", {embedded: str(root / "teacher")}.__getitem__)
    evaluate(embedded, out=tmp_path, held_out=str(root / "rows.jsonl"), settings=SETTINGS, dry_run=True)
    assert "good" in capsys.readouterr().err


@pytest.mark.usefixtures("no_models")
def test_text_behind_what_is_scored_is_not_tokenised(root: Path, tmp_path: Path) -> None:
    rows = [{"text": " ".join(WORDS[4:])}] * 3 + [{"text": None}]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check(root / "student", tmp_path / "out", tmp_path / "text.jsonl", dry_run=True)  # 60 tokens of 3 * 46
    with pytest.raises(DataError, match=r"text\.jsonl:4: .text. must be a string"):
        check(root / "student", tmp_path / "out", tmp_path / "text.jsonl", settings=EvaluateConfig(), dry_run=True)
