"""Chat rows: every known form is read, and what is no conversation is told by line and turn."""

import json
from pathlib import Path
from typing import Any

import pytest

from lrc.data.row_text import BadRow
from lrc.errors import DataError
from lrc.sft.conversations import check_turns, read_conversations
from tests.sft.tiny_chats import turns


def read(path: Path, *rows: Any) -> list[tuple[str, list[dict[str, str]], str]]:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return [tuple(row) for row in read_conversations(str(path), path.parent)]


def test_messages_sharegpt_and_alpaca_rows_become_the_same_conversation(tmp_path: Path) -> None:
    expected = turns("Add 1 and 2.\n\n3 too", "6")
    rows = read(
        tmp_path / "chats.jsonl",
        {"messages": expected},
        {"conversations": [{"from": "human", "value": "Add 1 and 2.\n\n3 too"}, {"from": "gpt", "value": "6"}]},
        {"instruction": "Add 1 and 2.", "input": "3 too", "output": "6"},
    )
    assert [messages for _, messages, _ in rows] == [expected] * 3
    assert [where for where, _, _ in rows] == [f"{tmp_path / 'chats.jsonl'}:{line}" for line in (1, 2, 3)]
    assert not any(problem for _, _, problem in rows)


def test_a_json_array_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "chats.json").write_text(json.dumps([{"messages": turns("a", "b")}] * 2))
    assert [row.messages for row in read_conversations(str(tmp_path), tmp_path)] == [turns("a", "b")] * 2


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (turns("a", "b", "c"), "the last turn must be the assistant's"),
        (turns("a", "b")[::-1], "turn 1 of 2: the role must be 'user', found 'assistant'"),
        ([*turns("a"), *turns("b", "c")], "turn 2 of 3: the role must be 'assistant', found 'user'"),
        ([*turns("a", "b"), *turns("c", "d", system="s")], "turn 3 of 5: the role must be 'user', found 'system'"),
        ([*turns("a"), {"role": "tool", "content": "b"}], "turn 2 of 2: the role must be 'assistant', found 'tool'"),
        (turns("a", " \n"), "turn 2 of 2: the content of the assistant is empty"),
        (turns("", "b", system="s"), "turn 2 of 3: the content of the user is empty"),
        (turns(system="s"), "a system message alone"),
        (turns("a", "b\ud83d"), "turn 2 of 2: the content is no text: half a surrogate pair"),
        (turns("a", "b", system="\ude00"), "turn 1 of 3: the content is no text: half a surrogate pair"),
    ],
)
def test_a_conversation_out_of_order_is_refused(messages: list[dict[str, str]], said: str) -> None:
    with pytest.raises(BadRow) as caught:
        check_turns(messages)
    assert said in str(caught.value)


@pytest.mark.parametrize("messages", [turns("a", "b"), turns("a", "b", "c", "d"), turns("a", "b", system="")])
def test_a_conversation_in_order_passes(messages: list[dict[str, str]]) -> None:
    check_turns(messages)


def test_a_bad_row_has_a_problem_and_the_others_are_read(tmp_path: Path) -> None:
    rows = read(tmp_path / "chats.jsonl", {"text": "no chat"}, '{"messages": [', [1], {"messages": turns("a", "b")})
    assert [bool(problem) for _, _, problem in rows] == [True, True, True, False]
    assert "no conversations, messages" in rows[0][2]
    assert "no JSON" in rows[1][2]


def test_half_a_surrogate_pair_in_an_array_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"messages": turns("a", "b\ud83d")}, {"messages": turns("a", "b\U0001f600")}]
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    found = list(read_conversations(str(tmp_path / "chats.json"), tmp_path))
    assert ["surrogate" in row.problem for row in found] == [True, False]
    assert [row.messages for row in found] == [[], turns("a", "b\U0001f600")]


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="matches none"):
        list(read_conversations(str(tmp_path / "*.jsonl"), tmp_path))
