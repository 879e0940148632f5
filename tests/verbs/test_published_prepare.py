"""The published data command: its mixes, its folder's name, and rows that training reads."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lrc.data.blocks import open_blocks
from lrc.errors import ConfigError
from lrc.verbs import published_prepare as module
from lrc.verbs.published_prepare import RECIPES, family_name, load_mix, main
from tests.data.raw_sources import byte_tokenizer, texts, write_source
from tests.tiny import teacher_folder

ROOT = Path(__file__).parents[2]
MIXES = sorted(path.name.removesuffix(".yaml") for path in (ROOT / RECIPES).glob("*.yaml"))


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    teacher_folder(tmp_path / "teacher", vocab_size=300)
    return byte_tokenizer(tmp_path / "teacher")


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """The sources of mix v5.1, 40 web rows (a fifth of them good enough) and one chat."""
    root = tmp_path / "datasets"
    for name in ("smollm-corpus/fineweb-edu-dedup", "OpenHermes-2.5"):
        (root / name).mkdir(parents=True)
    rows = [{"text": row["text"], "metadata": {"int_score": row["int_score"]}} for row in texts(40)]
    write_source(root / "smollm-corpus" / "fineweb-edu-dedup" / "train-00000-of-00234.parquet", rows)
    chat = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    (root / "OpenHermes-2.5" / "openhermes2_5.json").write_text(json.dumps([chat], indent=2))
    return root


@pytest.mark.parametrize(
    ("name", "billions"),
    [("v5.1", [10, 1]), ("v5.1.20b", [20, 1]), ("v5.0", [15, 2, 1, 1]), ("sft_v1.0", [None])],
)
def test_the_shipped_mixes_have_the_published_budgets(name: str, billions: list[int | None]) -> None:
    assert name in MIXES
    assert len(MIXES) == 4
    mix = load_mix(ROOT / RECIPES / f"{name}.yaml", data_root=Path("elsewhere"))
    assert [source.max_tokens for source in mix.sources] == [None if n is None else n * 10**9 for n in billions]
    assert all(Path(source.path).parts[0] == "elsewhere" for source in mix.sources)


@pytest.mark.parametrize(
    ("model_type", "vocab_size", "name"),
    [
        ("llama", 128_256, "llama3"),
        ("llama", 32_000, "llama2"),
        ("qwen2", 151_936, "qwen"),
        ("qwen3", 151_936, "qwen"),
        ("phi3", 32_064, "phi"),
        ("gemma3_text", 262_144, "gemma3_text"),
    ],
)
def test_the_folder_is_named_after_the_tokenizers_family(model_type: str, vocab_size: int, name: str) -> None:
    assert family_name(model_type, vocab_size) == name


def test_the_published_command_writes_the_published_rows(tmp_path: Path, teacher: Path, data_root: Path) -> None:
    script = ROOT / "data" / "generate_general_data_parallel.py"
    flags = ["--version", "v5.1", "--tkn-path", str(teacher), "--num-workers", "2", "--data-max-len", "32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, str(script), *flags, "--data_root", str(data_root)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    target = data_root / "mix_general_llama2_tokenized_v5.1" / "train.jsonl"
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert all(set(row) == {"input_ids", "data_cls"} for row in rows)
    assert all(len(row["input_ids"]) <= 32 for row in rows)
    good = [row["text"] for row in texts(40) if row["int_score"] >= 4]
    assert sum(len(row["input_ids"]) for row in rows) == sum(map(len, [*good, "<user>Hi<assistant>Hello"])) + 2 * 9
    assert len(open_blocks(str(target), None, sequence_length=32, vocab_size=300)) == len(rows)


def test_a_result_is_replaced_only_when_asked_for(
    teacher: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--version=v5.1", f"--tkn_path={teacher}", "--num_workers=1", f"--data_root={data_root}"]
    assert main([*flags, "--dry-run", "True"]) == 0
    target = data_root / "mix_general_llama2_tokenized_v5.1" / "train.jsonl"
    assert not target.parent.exists()
    assert main([*flags, "--data_max_len=64"]) == 0
    first = target.read_bytes()
    assert main([*flags, "--data_max_len=16"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert target.read_bytes() == first
    assert main([*flags, "--data_max_len=16", "--overwrite=1"]) == 0
    assert max(len(json.loads(line)["input_ids"]) for line in target.read_text().splitlines()) == 16


def test_shards_of_an_earlier_call_are_used_where_they_are_what_would_be_made(
    teacher: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--version=v5.1", f"--tkn_path={teacher}", "--data_max_len=64"]
    here = [*flags, f"--data_root={data_root}"]
    shards = data_root / "mix_general_llama2_tokenized_v5.1" / "prepare"
    target = shards.with_name("train.jsonl")
    assert main([*here, "--num_workers=1"]) == 0
    first = target.read_bytes()
    target.unlink()

    def said(arguments: list[str], code: int) -> str:
        capsys.readouterr()
        assert main(arguments) == code
        return capsys.readouterr().err

    assert f"the shards in {shards} are used" in said([*here, "--dry_run=1"], 0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_mix", lambda path, **root: replace(load_mix(path, **root), seed=7))
        assert "made with another prepare.seed than is asked for. Make them anew with --overwrite" in said(here, 2)
        assert "prepare.seed" in said([*here, "--dry_run=1"], 2)
    monkeypatch.chdir(data_root.parent)
    assert "the shards in datasets/" in said([*flags, f"--data_root={data_root.name}"], 0)
    assert target.read_bytes() == first
    target.unlink()
    byte_tokenizer(teacher, bos=False)
    assert "made with another tokenizer than is asked for" in said(here, 2)
    (shards / "recipe.yaml").unlink()
    assert "recipe.yaml must tell what the shards beside it were made of" in said(here, 2)
    assert not target.exists()


def test_an_unknown_mix_and_missing_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "v9", "--tkn-path", "x"]) == 2
    assert "one of sft_v1.0, v5.0, v5.1, v5.1.20b" in capsys.readouterr().err
    assert main(["--num-workers", "2"]) == 2
    assert "--version, --tkn-path is needed" in capsys.readouterr().err


def test_a_mix_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.yaml"
    path.write_text("sources:\n  - pth: a\n")
    with pytest.raises(ConfigError, match="pth"):
        load_mix(path, data_root=tmp_path)
