"""The command line: flags reach the verbs as given, results go to standard output, errors become exit codes."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lrc.cli import VERBS, convert_verb, evaluate_verb, main
from lrc.config import ConvertConfig, EvaluateConfig, load_recipe
from lrc.errors import CheckpointError, ConfigError, DataError, LrcError, NumericsError
from lrc.verbs.task_settings import TaskSettings

FUNCTIONS = {
    "demo": "lrc.verbs.demo.demo",
    "train": "lrc.verbs.train.train",
    "plan": "lrc.verbs.plan.plan",
    "check": "lrc.verbs.check.check",
    "convert": "lrc.verbs.convert.convert",
    "evaluate": "lrc.verbs.evaluate.evaluate",
    "report": "lrc.verbs.report.report",
    "chat": "lrc.verbs.chat.chat",
}
"""Verb -> the function that it calls."""
SWITCHES = ["--trust-remote-code", "--overwrite", "--dry-run"]
LEAST = {"demo": [], "convert": ["checkpoint", "out"], "report": ["run"], "chat": ["model"]}

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]
Record = Callable[..., Calls]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    """Put a recorder in the place of a function; it returns `result`, or raises it if it is an exception."""

    def replace(path: str, result: Any = None) -> Calls:
        calls: Calls = []

        def stand_in(*args: Any, **options: Any) -> Any:
            calls.append((args, options))
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(path, stand_in)
        return calls

    return replace


@pytest.mark.parametrize(
    ("argv", "args", "options"),
    [
        (["demo"], ((),), {"overwrite": False, "dry_run": False}),
        (
            ["demo", "run=runs/x", "train.max_steps=2", "--overwrite", "--dry-run"],
            (("run=runs/x", "train.max_steps=2"),),
            {"overwrite": True, "dry_run": True},
        ),
        (
            ["convert", "run/checkpoint-2", "out"],
            (Path("run/checkpoint-2"), Path("out")),
            {
                "teacher": None,
                "dtype": ConvertConfig().dtype,
                "max_shard_bytes": ConvertConfig().max_shard_bytes,
                "trust_remote_code": False,
                "overwrite": False,
                "dry_run": False,
            },
        ),
        (
            ["convert", "a", "b", "--teacher", "t", "--dtype", "bfloat16", "--max-shard-bytes", "7", *SWITCHES],
            (Path("a"), Path("b")),
            {
                "teacher": "t",
                "dtype": "bfloat16",
                "max_shard_bytes": 7,
                "trust_remote_code": True,
                "overwrite": True,
                "dry_run": True,
            },
        ),
        (
            ["report", "runs/x"],
            (Path("runs/x"),),
            {"push_to_hub": None, "student": None, "private": False, "dry_run": False},
        ),
        (
            ["report", "runs/x", "--push-to-hub", "o/n", "--student", "s", "--private", "--dry-run"],
            (Path("runs/x"),),
            {"push_to_hub": "o/n", "student": Path("s"), "private": True, "dry_run": True},
        ),
        (
            ["chat", "owner/model"],
            ("owner/model",),
            {"teacher": None, "prompt": None, "max_new_tokens": 200, "temperature": 0.0, "system": None},
        ),
        (
            [
                *["chat", "m", "--teacher", "t", "--prompt"],
                "a b",
                *["--max-new-tokens", "3", "--temperature", "0.5", "--system", "kind"],
            ],
            ("m",),
            {"teacher": "t", "prompt": "a b", "max_new_tokens": 3, "temperature": 0.5, "system": "kind"},
        ),
    ],
)
def test_flags_reach_the_verb(argv: list[str], args: Any, options: dict[str, Any], record: Record) -> None:
    calls = record(FUNCTIONS[argv[0]])
    assert main(argv) == 0
    assert calls == [(args, options)]


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {"resume": None, "overwrite": False, "dry_run": False}),
        (["--resume", "auto"], {"resume": "auto", "overwrite": False, "dry_run": False}),
        (["--overwrite", "--dry-run"], {"resume": None, "overwrite": True, "dry_run": True}),
    ],
)
def test_train_gets_the_recipe_with_its_overrides(
    recipe_file: Path, flags: list[str], options: dict[str, Any], record: Record
) -> None:
    calls = record(FUNCTIONS["train"])
    assert main(["train", str(recipe_file), "train.max_steps=7", "run=runs/y", *flags]) == 0
    assert calls == [((load_recipe(recipe_file, ("train.max_steps=7", "run=runs/y")),), options)]
    assert calls[0][0][0].train.max_steps == 7


@pytest.mark.parametrize(
    ("flags", "teacher", "settings", "overwrite"),
    [
        ([], None, EvaluateConfig(), False),
        (
            ["--teacher", "t", "--tokens", "9", "--sequence-length", "8", "--samples", "0", "--overwrite"],
            "t",
            EvaluateConfig(tokens=9, sequence_length=8, samples=0),
            True,
        ),
    ],
)
def test_evaluate_gets_its_settings_and_prints_the_scorecard(
    flags: list[str], teacher: str | None, settings: EvaluateConfig, overwrite: bool, record: Record
) -> None:
    calls = record(FUNCTIONS["evaluate"], Path("out/results.json"))
    printed = record("lrc.report.terminal.print_scorecard")
    assert main(["evaluate", "m", "--held-out", "h.jsonl", "--out", "out", *flags]) == 0
    wanted = {
        "out": Path("out"),
        "held_out": "h.jsonl",
        "teacher": teacher,
        "settings": settings,
        "tasks": TaskSettings(),
    }
    assert calls == [(("m",), {**wanted, "overwrite": overwrite, "dry_run": False})]
    assert printed == [((Path("out/results.json"),), {})]


def test_a_dry_run_of_evaluate_prints_no_scorecard(record: Record) -> None:
    calls = record(FUNCTIONS["evaluate"], Path("out/results.json"))
    printed = record("lrc.report.terminal.print_scorecard")
    assert main(["evaluate", "m", "--held-out", "h.jsonl", "--out", "out", "--dry-run"]) == 0
    assert calls[0][1]["dry_run"] is True
    assert printed == []


def test_evaluate_gets_its_tasks(record: Record) -> None:
    calls = record(FUNCTIONS["evaluate"], Path("out/results.json"))
    record("lrc.report.terminal.print_scorecard")
    flags = ["--data-dir", "d", "--limit", "5", "--num-fewshot", "1", "--batch-size", "2", "--write-tasks", "w"]
    assert main(["evaluate", "m", "--out", "out", "--tasks", "seed", *flags, "--allow-code"]) == 0
    assert calls[0][1]["held_out"] is None
    assert vars(calls[0][1]["tasks"]) == {
        "tasks": "seed",
        "data_dir": "d",
        "limit": 5,
        "num_fewshot": 1,
        "batch_size": "2",
        "write_tasks": Path("w"),
        "allow_code": True,
    }


@pytest.mark.parametrize(
    ("argv", "result", "out"),
    [
        (["report", "run"], Path("run/report/report.html"), "run/report/report.html\n"),
        (["convert", "checkpoint", "some/out"], Path("some/out"), "some/out\n"),
    ],
)
def test_standard_output_holds_the_result_alone(
    argv: list[str], result: Path, out: str, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    record(FUNCTIONS[argv[0]], result)
    assert main(argv) == 0
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("verb", "function"), [("prepare", "lrc.verbs.prepare.prepare"), ("convert", FUNCTIONS["convert"])]
)
def test_a_dry_run_names_no_result_that_is_not_there(
    verb: str, function: str, recipe_file: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    record(function, Path("out"))
    arguments = [verb, str(recipe_file)] if verb == "prepare" else [verb, "checkpoint", "out"]
    assert main([*arguments, "--dry-run"]) == 0
    assert capsys.readouterr().out == ""
    assert main(arguments) == 0
    assert capsys.readouterr().out == "out\n"


@pytest.mark.parametrize("verb", LEAST)
@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError, 2), (DataError, 2), (CheckpointError, 2), (LrcError, 2), (NumericsError, 1)],
)
def test_an_explained_error_is_one_line_and_its_exit_code(
    verb: str, error: type[LrcError], code: int, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    record(FUNCTIONS[verb], error("must be 3, found 4"))
    assert main([verb, *LEAST[verb]]) == code
    captured = capsys.readouterr()
    assert captured.err == "lrc: error: must be 3, found 4\n"
    assert captured.out == ""


def test_a_traceback_comes_first_where_debugging_is_asked_for(
    record: Record, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record(FUNCTIONS["report"], DataError("nothing there"))
    monkeypatch.setenv("LRC_DEBUG", "1")
    assert main(["report", "run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last)")
    assert "in stand_in" in said
    assert said.endswith("lrc: error: nothing there\n")


def test_ctrl_c_ends_with_130_and_no_traceback(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    record(FUNCTIONS["demo"], KeyboardInterrupt())
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "lrc: interrupted\n"


def test_a_defect_is_not_explained_away(record: Record) -> None:
    record(FUNCTIONS["report"], ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError):
        main(["report", "run"])


def test_chat_ends_with_its_own_code(record: Record) -> None:
    record(FUNCTIONS["chat"], 130)
    with pytest.raises(SystemExit) as caught:
        main(["chat", "m"])
    assert caught.value.code == 130


def test_an_unreadable_recipe_never_reaches_the_verb(
    tmp_path: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = record(FUNCTIONS["train"])
    assert main(["train", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml" in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["trian", "recipe.yaml"],
        ["train"],
        ["convert", "checkpoint"],
        ["convert", "checkpoint", "out", "--max-shard-bytes", "many"],
        ["evaluate", "model"],
        ["chat", "model", "--temprature", "1"],
    ],
)
def test_a_call_that_fits_no_verb_ends_with_2(argv: list[str], record: Record) -> None:
    calls = [record(path) for path in FUNCTIONS.values()]
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert not any(calls)


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert all(verb in said for verb in VERBS)


def test_a_flag_that_is_not_given_leaves_it_to_the_recipe_and_the_help_names_its_default() -> None:
    for verb, settings in ((convert_verb, ConvertConfig()), (evaluate_verb, EvaluateConfig())):
        flags = {name: flag.default for name, flag in inspect.signature(verb).parameters.items()}
        shared = set(flags) & set(vars(settings))
        assert len(shared) >= 2
        lines = (verb.__doc__ or "").splitlines()
        for name in shared:
            assert flags[name] is None
            (said,) = (line for line in lines if line.strip().startswith(f"{name}: "))
            assert str(vars(settings)[name]) in said


@pytest.mark.parametrize("verb", ["demo", "train", "convert", "evaluate", "chat"])
def test_defaults_of_the_flags_are_those_of_the_function(verb: str) -> None:
    module_name, _, name = FUNCTIONS[verb].rpartition(".")
    function = getattr(importlib.import_module(module_name), name)
    flags = inspect.signature(VERBS[verb]).parameters
    # `settings` is built of flags; only a checkpoint of the original code needs student; benchmarks measure more; the
    # run says what a converted student is
    unset = {"settings", "student", "also_measure", "keep_start", "dtype", "max_shard_bytes"}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in unset:
            assert flags[key].default == parameter.default, key
