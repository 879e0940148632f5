"""Chats to an Arrow file: cut, dropped and left-out rows are counted, and nothing is lost on the way."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from lrc.errors import DataError
from lrc.sft.chat_encoder import ChatEncoder, Sample
from lrc.sft.samples import ChatCounts, held_out_chats, read_samples, write_samples
from lrc.sft_config import SftConfig
from tests.sft.tiny_chats import chat_tokenizer, turns


def encoder() -> ChatEncoder:
    tokenizer = chat_tokenizer()
    return ChatEncoder(tokenizer, {tokenizer.eos_token_id})


def read(path: Path, rows: list[object], settings: SftConfig) -> tuple[list[Sample], ChatCounts]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = ChatCounts()
    return list(read_samples(str(path), encoder(), settings, counts, path.parent)), counts


SHORT, LONG = {"messages": turns("hi", "yo")}, {"messages": turns("hi", "y" * 90)}
ASKED_TOO_LONG = {"messages": turns("h" * 90, "yo")}
BAD = {"messages": turns("hi")}


def test_what_fits_is_kept_whole_and_counted(tmp_path: Path) -> None:
    samples, counts = read(tmp_path / "a.jsonl", [SHORT, LONG], SftConfig(sequence_length=512))
    assert [len(sample.ids) for sample in samples] == [
        len(encoder().encode(row["messages"])[0].ids) for row in (SHORT, LONG)
    ]
    assert (counts.rows, counts.sequences, counts.truncated, counts.dropped, counts.bad_rows) == (2, 2, 0, 0, 0)
    assert counts.tokens == sum(len(sample.ids) for sample in samples)
    assert counts.answer_tokens == len("yo") + 1 + 90 + 1
    assert counts.longest == max(len(sample.ids) for sample in samples)


def test_over_long_chats_are_cut_and_counted(tmp_path: Path) -> None:
    samples, counts = read(tmp_path / "a.jsonl", [SHORT, LONG, ASKED_TOO_LONG], SftConfig(sequence_length=70))
    assert [len(sample.ids) for sample in samples] == [len(samples[0].ids), 70]
    assert samples[1].ids == encoder().encode(LONG["messages"])[0].ids[:70]
    assert (counts.sequences, counts.truncated, counts.answerless, counts.dropped) == (2, 1, 1, 0)
    assert "1 cut off" in counts.line()
    assert "1 dropped since no answer begins before the cut" in counts.line()


def test_over_long_chats_are_dropped_if_asked_and_counted(tmp_path: Path) -> None:
    settings = SftConfig(sequence_length=70, over_long="drop")
    samples, counts = read(tmp_path / "a.jsonl", [SHORT, LONG, ASKED_TOO_LONG], settings)
    assert (len(samples), counts.sequences, counts.truncated, counts.dropped) == (1, 1, 0, 2)
    assert counts.tokens == len(samples[0].ids)
    assert counts.longest > 70


def test_a_bad_row_is_refused_by_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl", [SHORT, BAD, SHORT], SftConfig())
    assert f"{tmp_path / 'a.jsonl'}:2: the last turn must be the assistant's" in str(caught.value)


def test_bad_rows_are_left_out_up_to_the_share_allowed(tmp_path: Path) -> None:
    rows = [SHORT, BAD, SHORT, SHORT]
    samples, counts = read(tmp_path / "a.jsonl", rows, SftConfig(max_bad_share=0.25))
    assert (len(samples), counts.rows, counts.bad_rows) == (3, 4, 1)
    assert counts.listed_bad_rows[0].startswith(f"{tmp_path / 'a.jsonl'}:2: ")
    with pytest.raises(DataError, match=r"1 of 4 rows are no usable chats, more than sft.max_bad_share = 0\.2"):
        read(tmp_path / "a.jsonl", rows, SftConfig(max_bad_share=0.2))


def held_out(path: Path, rows: list[object], **settings: Any) -> tuple[list[tuple[list[int], list[int]]], ChatCounts]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return held_out_chats(encoder(), SftConfig(held_out=str(path), **settings))


def test_held_out_chats_are_counted_like_the_others(tmp_path: Path) -> None:
    rows = [SHORT, LONG, ASKED_TOO_LONG, SHORT, SHORT]
    chats, counts = held_out(tmp_path / "h.jsonl", rows, sequence_length=70, held_out_chats=3)
    short = encoder().encode(SHORT["messages"])[0]
    assert [len(ids) for ids, _ in chats] == [len(short.ids), 70, len(short.ids)]
    assert chats[0] == (short.ids, short.labels)
    assert (counts.rows, counts.sequences, counts.truncated, counts.answerless) == (4, 3, 1, 1)
    assert counts.tokens == sum(len(ids) for ids, _ in chats)
    chats, counts = held_out(tmp_path / "h.jsonl", rows, sequence_length=70, over_long="drop", held_out_chats=3)
    assert (len(chats), counts.rows, counts.dropped, counts.truncated) == (3, 5, 2, 0)
    assert held_out_chats(encoder(), SftConfig()) == ([], ChatCounts())


def test_the_share_of_bad_rows_is_checked_where_held_out_reading_stops(tmp_path: Path) -> None:
    rows = [SHORT, BAD, SHORT, SHORT, SHORT]
    chats, counts = held_out(tmp_path / "h.jsonl", rows, max_bad_share=0.4, held_out_chats=2)
    assert (len(chats), counts.rows, counts.bad_rows) == (2, 3, 1)
    assert counts.listed_bad_rows[0].startswith(f"{tmp_path / 'h.jsonl'}:2: ")
    with pytest.raises(DataError, match=r"1 of 3 rows are no usable chats, more than sft.max_bad_share = 0\.3"):
        held_out(tmp_path / "h.jsonl", rows, max_bad_share=0.3, held_out_chats=2)


def test_no_chat_that_fits_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one chat that fits"):
        read(tmp_path / "a.jsonl", [LONG], SftConfig(sequence_length=8, over_long="drop"))


def test_the_arrow_file_gives_the_sequences_back(tmp_path: Path) -> None:
    samples = [Sample([n, n + 1, n + 2], [-100, n + 1, n + 2], 0) for n in range(1300)]
    seen: list[int] = []
    write_samples(tmp_path / "chats.arrow", iter(samples), seen.append)
    rows = Dataset.from_file(str(tmp_path / "chats.arrow"))
    assert rows.column_names == ["input_ids", "labels"]
    assert [(row["input_ids"], row["labels"]) for row in rows] == [(sample.ids, sample.labels) for sample in samples]
    assert seen[-1] == 1300
