"""The demo's chain on a tiny teacher: every verb's folder, a scorecard that is true, and a second call that goes on."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrc.errors import ConfigError
from lrc.training.launch import write_recipe
from lrc.verbs.demo import demo, demo_recipe
from tests.tiny import teacher_folder, write_rows


def overrides(root: Path) -> tuple[str, ...]:
    return (
        f"run={root / 'run'}",
        f"teacher={root / 'teacher'}",
        "student.hidden_size=16",
        f"data.train={root / 'train.jsonl'}",
        f"data.held_out={root / 'held_out.jsonl'}",
        "data.sequence_length=16",
        "data.held_out_tokens=64",
        "start.tokens=256",
        "train.max_steps=4",
        "train.compute_dtype=float32",
        "evaluate.compute_dtype=float32",
        "evaluate.tokens=64",
        "evaluate.sequence_length=16",
        "evaluate.sample_tokens=4",
    )


@pytest.mark.slow
def test_the_demo_ends_with_student_scorecard_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher_folder(tmp_path / "teacher", max_position_embeddings=512)
    write_rows(tmp_path / "train.jsonl")
    write_rows(tmp_path / "held_out.jsonl", rows=4, seed=1)
    page = demo(overrides(tmp_path))
    run = tmp_path / "run"
    assert page == run / "report" / "report.html"
    said = capsys.readouterr().out
    for part in ("scorecard", f"lrc chat {run / 'convert'}", str(page)):
        assert part in said.replace("\n", "")
    results = json.loads((run / "evaluate" / "results.json").read_text())
    assert json.loads((run / "convert" / "parity.json").read_text())["passed"] is True
    check_card(results, run / "convert", tmp_path / "held_out.jsonl")
    assert "KL" in page.read_text()
    weights = (run / "convert" / "model.safetensors").read_bytes()
    demo(overrides(tmp_path))
    assert (run / "convert" / "model.safetensors").read_bytes() == weights


def check_card(results: dict[str, object], student_folder: Path, held_out: Path) -> None:
    """Recompute the student's numbers plainly in float64."""
    student = AutoModelForCausalLM.from_pretrained(student_folder)
    loss, count = 0.0, 0
    for line in held_out.read_text().splitlines():
        ids = torch.tensor([json.loads(line)["input_ids"]])
        with torch.no_grad():
            logits = student(ids).logits[0].double()
        picked = logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])
        loss, count = loss - float(picked.sum()), count + ids.shape[1] - 1
    card = results["student"]
    assert isinstance(card, dict)
    assert card["cross_entropy"] == pytest.approx(loss / count, rel=1e-4)
    assert card["perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-4)
    assert card["parameters"] == sum(parameter.numel() for parameter in student.parameters())
    assert card["file_size_bytes"] == (student_folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("rate", "steps"), [(700e9, 100), (400e9, 60), (160e9, 40), (100e9, 20), (60e9, 10)])
def test_the_demo_trains_longer_on_a_faster_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rate: float, steps: int
) -> None:
    monkeypatch.setattr("lrc.verbs.demo.products_flops_per_second", lambda dtype: rate)
    run = f"run={tmp_path / 'run'}"
    assert demo_recipe((run,)).train.max_steps == steps
    assert demo_recipe((run, "train.max_steps=3")).train.max_steps == 3


def test_a_demo_without_held_out_text_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lrc.verbs.demo.products_flops_per_second", lambda dtype: 60e9)
    monkeypatch.setattr("lrc.verbs.demo.train", lambda *args, **options: pytest.fail("training begins"))
    with pytest.raises(ConfigError, match=r"data\.held_out must name the text .* names none"):
        demo((f"run={tmp_path / 'run'}", "data.held_out=null"))


def test_a_demo_under_way_keeps_its_length(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = f"run={tmp_path / 'run'}"
    monkeypatch.setattr("lrc.verbs.demo.products_flops_per_second", lambda dtype: 700e9)
    (tmp_path / "run" / "train").mkdir(parents=True)
    write_recipe(tmp_path / "run" / "train" / "recipe.yaml", demo_recipe((run,)))
    monkeypatch.setattr("lrc.verbs.demo.products_flops_per_second", lambda dtype: 60e9)
    assert demo_recipe((run,)).train.max_steps == 100
    assert demo_recipe((run,)).student.correction == "mlp"


def test_a_demo_from_before_there_were_corrections_goes_on_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, place = f"run={tmp_path / 'run'}", tmp_path / "run" / "train" / "recipe.yaml"
    monkeypatch.setattr("lrc.verbs.demo.products_flops_per_second", lambda dtype: 700e9)
    place.parent.mkdir(parents=True)
    write_recipe(place, demo_recipe((run, "student.correction=none")))
    place.write_text("".join(line for line in place.read_text().splitlines(True) if "correction" not in line))
    found = demo_recipe((run,))
    assert found.student.correction == "none"
    assert demo_recipe((run,), anew=True).student.correction == "mlp"
    assert demo_recipe((run, "student.correction=outputs")).student.correction == "outputs"
    assert found.train.max_steps == 100
