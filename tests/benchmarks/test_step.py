"""`benchmarks/step.py` from the command line, at the tiny shape."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.speed.command import main

TINY = ("--shapes", "tiny", "--dtype", "float32", "--device", "cpu", "--rounds", "2")


def run(out: Path, *flags: str, code: int = 0) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "benchmarks/step.py", *TINY, *flags, "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr if code else done.stdout


@pytest.mark.slow
def test_a_tiny_run_prints_every_way_and_writes_its_numbers(tmp_path: Path) -> None:
    text = run(tmp_path / "step.json", "--accumulation", "1,2", "--profile")
    found = json.loads((tmp_path / "step.json").read_text())
    (shape,) = found["shapes"]
    ways = {way["title"]: way for way in shape["ways"]}
    selective, layer = "ours, selective checkpointing", "ours, layer checkpointing"
    assert list(ways) == ["ours", "ours, x2", selective, layer, "plain", "floor"]
    assert all(f"| {title} |" in text for title in ways)
    for way in ways.values():
        assert all(len(times) == 2 for times in way["seconds"].values())
        assert way["tokens_per_second"] > 0
        assert way["peak_bytes"] > 0
        assert 0 < way["product_rate_share"] < 1
    assert set(ways["floor"]["seconds"]) == {"teacher", "student"}
    assert ways["ours, x2"]["tokens"] == 2 * ways["ours"]["tokens"] == 128
    assert ways["ours"]["time_over_floor"] > 0
    assert ways["ours"]["speed_over_plain"] > 0
    kept = [ways[title]["kept_bytes"] for title in (layer, selective, "ours", "plain")]
    assert kept == sorted(set(kept))
    assert ways[layer]["peak_bytes"] < ways["plain"]["peak_bytes"]
    assert set(shape["parts"]) == {"ours", "ours, x2", selective, layer}
    assert (tmp_path / "tiny-ours-x2.json").is_file()


@pytest.mark.slow
def test_ways_are_chosen_by_words_of_their_titles(tmp_path: Path) -> None:
    run(tmp_path / "step.json", "--accumulation", "1,2", "--ways", "x2")
    found = json.loads((tmp_path / "step.json").read_text())["shapes"][0]["ways"]
    assert [way["title"] for way in found] == ["ours, x2", "floor"]
    assert found[0]["time_over_floor"] > 0
    said = run(tmp_path / "none.json", "--ways", "x3", code=2)
    assert "No way has 'x3' in its title" in said
    assert "ours, layer checkpointing; plain; floor" in said
    assert not (tmp_path / "none.json").exists()


def test_an_unknown_shape_is_told(tmp_path: Path) -> None:
    assert "There is no shape 'demoo'. There are demo," in run(tmp_path / "none.json", "--shapes", "demoo", code=2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sweep", "width", "--ways", "x2"), "leave --ways out"),
        (("--sweep", "width", "--compile", "--accumulation", "2"), "leave --compile, --accumulation out"),
        (("--sweep", "widht"), "A sweep can't double 'widht'. It can double tokens, length, layers"),
        (("--sweep", "width", "--points", "1"), "--points must be at least 2, found 1"),
    ],
)
def test_a_sweep_refuses_what_it_has_no_use_for(
    flags: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["step.py", *TINY, *flags])
    with pytest.raises(SystemExit) as ended:
        main(None)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
