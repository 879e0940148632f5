"""The documents of a file: what is kept, and a tally in which every row is counted once."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from lrc.data.documents import PUT_ASIDE, Tally, put_aside, read_documents
from lrc.data.source_rows import SourceRow
from lrc.data_config import PrepareConfig, SourceConfig

SOURCE = SourceConfig(path="rows.jsonl", filters=("score >= 4",))


def rows_of(*values: dict[str, Any] | None) -> Iterator[SourceRow]:
    for number, value in enumerate(values, start=1):
        yield SourceRow(number, value, "" if value is not None else "no JSON object")


def roles_of(messages: list[dict[str, str]]) -> str:
    return " ".join(message["role"] for message in messages)


def documents(
    *values: dict[str, Any] | None, source: SourceConfig = SOURCE, key: int = 0, **settings: Any
) -> tuple[list[str], Tally]:
    tally = Tally()
    config = PrepareConfig(**settings)
    found = list(read_documents(rows_of(*values), config, source, key=key, chat_text=roles_of, tally=tally))
    assert tally.rows == len(values) == len(found) + sum(tally.rejected.values()) + len(tally.bad)
    return found, tally


def test_every_row_is_kept_rejected_for_a_reason_or_bad_with_its_number() -> None:
    found, tally = documents(
        {"text": "good", "score": 5},
        {"text": "poor", "score": 3},
        {"text": "", "score": 5},
        None,
        {"score": 5},
        {"text": "no score"},
        {"text": "\ud800", "score": 5},
        {"text": "good too", "score": 4},
    )
    assert found == ["good", "good too"]
    assert tally.rejected == {"score >= 4": 1, "empty text": 1}
    assert tally.bad == [
        (4, "no JSON object"),
        (5, "no field 'text'"),
        (6, "no field 'score'"),
        (7, "half a surrogate pair"),
    ]


@pytest.mark.parametrize(("text", "kept"), [("abcd", True), ("abcde", False), ("éé", True), ("ééa", False)])
def test_a_document_s_limit_counts_bytes_of_utf_8(text: str, kept: bool) -> None:
    found, tally = documents({"text": text, "score": 5}, max_document_bytes=4)
    assert found == ([text] if kept else [])
    assert tally.bad == ([] if kept else [(1, "longer than prepare.max_document_bytes = 4")])


def test_a_chat_goes_through_the_template() -> None:
    row = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
    assert documents(row, source=SourceConfig(path="chats.jsonl", kind="chat"))[0] == ["user assistant"]


def test_the_share_kept_follows_seed_file_and_row_alone() -> None:
    source = replace(SOURCE, filters=(), keep=0.3)
    values = [{"text": str(number)} for number in range(2000)]
    found, tally = documents(*values, source=source)
    assert len(found) == pytest.approx(600, abs=80)
    assert tally.rejected == {"not among the share kept": 2000 - len(found)}
    assert documents(*values, source=source)[0] == found
    assert documents(*values[:500], source=source)[0] == [text for text in found if int(text) < 500]
    assert documents(*values, source=source, key=1)[0] != found
    assert documents(*values, source=source, seed=1)[0] != found


def put(texts: list[str], share: float, seed: int = 0) -> tuple[list[str], list[str], Tally]:
    aside, tally = io.StringIO(), Tally()
    kept = list(put_aside(iter(texts), aside, share=share, seed=seed, tally=tally))
    return kept, [json.loads(line)["text"] for line in aside.getvalue().splitlines()], tally


def test_documents_are_put_aside_by_their_text_with_all_their_copies() -> None:
    texts = [f"Satz {number % 1000} über Flüsse" for number in range(2000)]
    kept, aside, tally = put(texts, 0.3)
    assert len(aside) == pytest.approx(600, abs=90)
    assert not set(kept) & set(aside)
    assert kept == [text for text in texts if text not in set(aside)]
    assert aside == [text for text in texts if text in set(aside)]
    assert tally.rejected == {PUT_ASIDE: len(aside)}
    assert put(texts[::-1], 0.3)[1] == aside[::-1]
    assert put(texts, 0.3, seed=1)[1] != aside
    assert set(put(texts, 0.1)[1]) < set(aside)


def test_of_many_bad_rows_the_first_are_listed_and_all_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrc.data.documents.LISTED", 3)
    calls = []
    tally = Tally(watch=lambda tally: calls.append(tally.num_bad))
    for number in range(1, 30):
        tally.add_bad(number, "x" * 1000)
    assert (tally.num_bad, tally.bad) == (29, [(number, "x" * 200) for number in (1, 2, 3)])
    assert calls == [3, 6, 12, 24]
