"""Bad input through the command line: exit code 2, an error that names what is wrong, and nothing changed on disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lrc.cli import main
from lrc.data.folder_hash import write_sums
from lrc.training.launch import write_recipe
from lrc.verbs.train import train
from tests.tiny import teacher_folder, tiny_recipe


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    recipe = tiny_recipe(root, train__max_steps=2)
    write_recipe(root / "recipe.yaml", recipe)
    train(recipe)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished tiny run; its recipe points into the copy."""
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    for path in copy.rglob("*"):
        if path.suffix in (".yaml", ".json") and path.is_file():
            path.write_text(path.read_text().replace(str(finished), str(copy)))
    for checkpoint in (copy / "run" / "train").glob("checkpoint-*"):
        write_sums(checkpoint)
    return copy


def refused(root: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a verb that must refuse; return what it said."""
    before = snapshot(root)
    assert main(arguments) == 2
    assert snapshot(root) == before
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.max_stepz=3", ["unknown key 'train.max_stepz'", "Did you mean 'train.max_steps'"]),
        ("teacher=/nowhere/teacher", ["/nowhere/teacher"]),
        ("student.hidden_size=32", ["below the teacher's 32", "found 32"]),
        ("student.hidden_size=40", ["below the teacher's 32"]),
        ("student.hidden_size=15", ["does not fit llama", "12, 16"]),
        ("objective.without=[attn-z]", ["attn-z", "attn-q"]),
        ("data.train=/nowhere/*.jsonl", ["/nowhere/*.jsonl", "matches no file"]),
        ("train.max_steps=0", ["train.max_steps", "found 0"]),
        ("train.max_steps", ["section.key=value"]),
        ("start.tokens=-1", ["start.tokens"]),
    ],
)
def test_a_bad_recipe_value_is_refused(
    root: Path, override: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = f"run={root / 'other'}"
    text = refused(root, ["train", str(root / "recipe.yaml"), fresh, override], capsys)
    for part in said:
        assert part in text


def spoil_ids(line: str) -> str:
    row = json.loads(line)
    row["input_ids"][3] = 999
    return json.dumps(row)


@pytest.mark.parametrize(
    ("number", "spoil", "said"),
    [
        (1, spoil_ids, ["train.jsonl:1", "999", "0 to 47"]),
        (5, lambda line: "", ["train.jsonl:5", "empty line"]),
        (40, lambda line: line[:-7], ["train.jsonl:40", "cut off"]),
        (1, lambda line: "{not json}", ["train.jsonl:1", "JSON"]),
        (1, lambda line: '{"words": 3}', ["train.jsonl:1", "input_ids"]),
        (20, spoil_ids, ["train.jsonl:20", "999", "0 to 47"]),
        (20, lambda line: line[:-7], ["train.jsonl:20", "JSON"]),
    ],
    ids=["id-beyond-vocabulary", "empty-line", "truncated", "not-json", "no-ids", "id-amid", "truncated-amid"],
)
def test_bad_data_is_refused_with_file_and_line(
    root: Path, number: int, spoil: Callable[[str], str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = root / "train.jsonl"
    lines = data.read_text().splitlines()
    lines[number - 1] = spoil(lines[number - 1])
    data.write_text("\n".join(lines))
    text = refused(root, ["train", str(root / "recipe.yaml"), f"run={root / 'other'}"], capsys)
    for part in said:
        assert part in text


def test_text_that_the_models_vocabulary_has_no_id_for_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(root / "teacher")
    tokenizer.add_tokens(["w99"])
    tokenizer.save_pretrained(root / "teacher")
    rows = [json.dumps({"text": "w1 w2 w3 " * 20 + ("w99" if number == 20 else "w4")}) for number in range(1, 41)]
    (root / "train.jsonl").write_text("\n".join(rows) + "\n")
    text = refused(root, ["train", str(root / "recipe.yaml"), f"run={root / 'other'}"], capsys)
    for part in ("train.jsonl:20", "token id 48", "0 to 47"):
        assert part in text


def test_an_existing_run_is_not_overwritten_unasked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(root, ["train", str(root / "recipe.yaml")], capsys)
    assert "--resume auto" in text
    assert "--overwrite" in text


def test_a_checkpoint_of_another_teacher_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = teacher_folder(root / "other_teacher", seed=5)
    checkpoint = root / "run" / "train" / "checkpoint-2"
    text = refused(root, ["convert", str(checkpoint), str(root / "out"), "--teacher", str(other)], capsys)
    assert "was trained with the teacher" in text
    text = refused(root, ["train", str(root / "recipe.yaml"), f"teacher={other}", "--resume", "auto"], capsys)
    assert "was trained with the teacher" in text


def test_a_resumed_run_with_another_student_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(root / "recipe.yaml"), "student.hidden_size=8", "--resume", "auto"]
    assert "another student" in refused(root, arguments, capsys)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--target-hidden-size", "8"], "hidden_size"),
        (["--use-all-attn", "0"], "attention_projections"),
        (["--use-in-out-mlp", "1"], "ffn_projections"),
        (["--tie-word-emb-proj", "1"], "tie_embedding_projection"),
    ],
)
def test_contradicting_convert_flags_are_refused(
    root: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from lrc.verbs.published_convert import main as convert_main

    before = snapshot(root)
    checkpoint = root / "run" / "train" / "checkpoint-2" / "model.safetensors"
    code = convert_main(["--ckpt-path", str(checkpoint), "--save-path", str(root / "out"), *flags])
    assert code == 2
    assert snapshot(root) == before
    text = capsys.readouterr().err
    assert said in text
    assert "contradict" in text


def test_an_existing_output_folder_needs_overwrite(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, checkpoint = root / "out", root / "run" / "train" / "checkpoint-2"
    assert main(["convert", str(checkpoint), str(out)]) == 0
    capsys.readouterr()
    assert "--overwrite" in refused(root, ["convert", str(checkpoint), str(out)], capsys)
    assert main(["convert", str(checkpoint), str(out), "--overwrite"]) == 0
    results = root / "results"
    arguments = ["evaluate", str(out), "--held-out", str(root / "held_out.jsonl"), "--out", str(results)]
    assert main(arguments) == 0
    capsys.readouterr()
    assert "--overwrite" in refused(root, arguments, capsys)


def test_a_damaged_checkpoint_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = root / "run" / "train" / "checkpoint-2"
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, weights)
    write_sums(checkpoint)
    assert "lacks" in refused(root, ["convert", str(checkpoint), str(root / "out")], capsys)
    weights.write_bytes(weights.read_bytes()[:100])
    assert "damaged: model.safetensors" in refused(root, ["convert", str(checkpoint), str(root / "out")], capsys)
    write_sums(checkpoint)
    assert "can't be read" in refused(root, ["convert", str(checkpoint), str(root / "out")], capsys)
    missing = root / "run" / "train" / "checkpoint-9"
    assert "not there" in refused(root, ["convert", str(missing), str(root / "out")], capsys)


def test_a_dry_run_writes_nothing(root: Path) -> None:
    before = snapshot(root)
    assert main(["train", str(root / "recipe.yaml"), f"run={root / 'other'}", "--dry-run"]) == 0
    checkpoint = root / "run" / "train" / "checkpoint-2"
    assert main(["convert", str(checkpoint), str(root / "out"), "--dry-run"]) == 0
    assert snapshot(root) == before
