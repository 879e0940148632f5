"""The records are frozen, say what each field means, and hold every number of the files that they stand for."""

import ast
import copy
import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from lrc.report import records
from lrc.report.read_run import FINE_TUNED_FILE, METRICS_FILE, PARITY_FILE, RESULTS_FILE, START_FILE, read_run
from lrc.report.records import HeldOut, RunData
from tests.report.synthetic_run import write_json, write_lines, write_run

CLASSES = [
    kind for _, kind in inspect.getmembers(records, dataclasses.is_dataclass) if kind.__module__ == records.__name__
]

each_record = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("records") / "demo", num_steps=8, num_layers=2)


def records_in(value: Any) -> list[Any]:
    """List a record and all records inside it."""
    if isinstance(value, tuple):
        return [inner for entry in value for inner in records_in(entry)]
    if not dataclasses.is_dataclass(value) or type(value) not in CLASSES:
        return []
    return [value, *(inner for entry in vars(value).values() for inner in records_in(entry))]


@each_record
def test_fields_are_given_by_name_and_have_no_defaults(kind: Any) -> None:
    for entry in dataclasses.fields(kind):
        assert entry.kw_only, entry.name
        assert entry.default is dataclasses.MISSING, entry.name
        assert entry.default_factory is dataclasses.MISSING, entry.name


@each_record
def test_every_field_says_what_it_is(kind: Any) -> None:
    (body,) = (node for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    documented = {
        field.target.id
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }
    assert documented == {entry.name for entry in dataclasses.fields(kind)}


def test_a_run_that_was_read_cannot_be_changed(run: Path) -> None:
    found = records_in(read_run(run))
    assert {type(record) for record in found} == set(CLASSES)
    for record in found:
        name = dataclasses.fields(record)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, None)


def test_equal_runs_are_equal_records(run: Path) -> None:
    data = read_run(run)
    assert data == read_run(run)
    assert data != dataclasses.replace(data, train=data.train[1:])
    assert isinstance(data, RunData)
    assert len(set(data.held_out)) == len(data.held_out)
    assert dataclasses.replace(data.held_out[0]) in set(data.held_out)
    assert isinstance(data.held_out[0], HeldOut)


def leaves(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths of all plain values of nested JSON."""
    if isinstance(values, dict):
        return [leaf for key, value in values.items() for leaf in leaves(value, (*path, key))]
    if isinstance(values, list):
        return [leaf for place, value in enumerate(values) for leaf in leaves(value, (*path, place))]
    return [path]


def changed(values: Any, path: tuple[Any, ...]) -> Any:
    """Copy nested JSON with another value of the same type at a path."""
    copied = copy.deepcopy(values)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    old = inner[path[-1]]
    inner[path[-1]] = (not old) if isinstance(old, bool) else f"{old}x" if isinstance(old, str) else (old or 0) + 1
    return copied


LEFT_OUT: dict[str, set[tuple[str, ...]]] = {
    START_FILE: set(),
    PARITY_FILE: set(),
    RESULTS_FILE: {("tasks", "metrics"), ("tasks", "batch_size"), ("tasks", "dtype")},
    FINE_TUNED_FILE: {
        *((key,) for key in ("rows", "processes", "loss", "seconds", "student", "student_hash", "teacher")),
        *((key,) for key in ("versions", "machine")),
        *(("chats", key) for key in ("listed_bad_rows", "longest", "unended_answers")),
        ("held_out", "source"),
        ("held_out", "chats"),
        ("held_out", "before", "positions"),
        ("held_out", "after", "positions"),
    },
}
"""Keys of a file that the report does not show: other metrics, how tasks were run, how the machine was."""


@pytest.mark.parametrize("name", LEFT_OUT)
def test_every_value_of_a_file_is_kept(run: Path, name: str) -> None:
    values, before = json.loads((run / name).read_text("utf-8")), read_run(run)
    try:
        for leaf in leaves(values):
            write_json(run / name, changed(values, leaf))
            is_left_out = any(leaf[:depth] in LEFT_OUT[name] for depth in (1, 2, 3))
            assert (read_run(run) == before) == is_left_out, leaf
    finally:
        write_json(run / name, values)
    assert read_run(run) == before


NOT_SHOWN = {"train": {"loss", "gradient_norm", "learning_rate", "tokens_per_second"}, "held_out": {"seconds"}}
"""Kind of a metrics line -> its keys that the report does not show."""


@pytest.mark.parametrize(("place", "kind"), [(0, "held_out"), (1, "train")])
def test_every_value_of_a_metrics_line_that_the_report_shows_is_kept(run: Path, place: int, kind: str) -> None:
    lines, before = [json.loads(line) for line in (run / METRICS_FILE).read_text("utf-8").splitlines()], read_run(run)
    assert lines[place].pop("kind") == kind
    try:
        for leaf in leaves(lines[place]):
            line = {"kind": kind, **changed(lines[place], leaf)}
            write_lines(run / METRICS_FILE, [*lines[:place], line, *lines[place + 1 :]])
            assert (read_run(run) == before) == (leaf[0] in NOT_SHOWN[kind]), leaf
    finally:
        lines[place]["kind"] = kind
        write_lines(run / METRICS_FILE, lines)
