"""Filters, fields and conversations of a row."""

from typing import Any

import pytest
from jinja2 import TemplateError

from lrc.data.row_text import BadRow, meets, messages_of, needed_fields, read_fields, text_of
from lrc.data_config import SourceConfig

QUESTION = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


def no_chat(messages: Any) -> str:
    raise AssertionError(messages)


def refusing(messages: Any) -> str:
    raise TemplateError("roles must alternate")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int_score >= 4", True),
        ("int_score>4", False),
        ("int_score == 4", True),
        ("int_score != 4", False),
        ("int_score < 4.5", True),
        ("meta.language == en", True),
        ('meta.language != "en"', False),
    ],
)
def test_filters_compare_a_field(text: str, expected: bool) -> None:
    assert meets({"int_score": 4, "meta": {"language": "en"}}, text) is expected


@pytest.mark.parametrize("row", [{}, {"int_score": None}, {"int_score": "4"}])
def test_a_field_that_is_missing_or_of_another_kind_is_a_bad_row(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="int_score"):
        meets(row, "int_score >= 4")


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        {"messages": QUESTION},
        {"instruction": "Why?", "input": "", "output": "So."},
        {"instruction": "Why?", "output": "So."},
    ],
)
def test_three_kinds_of_chats_give_the_same_messages(row: dict[str, Any]) -> None:
    assert messages_of(row) == QUESTION


def test_alpacas_input_follows_its_instruction() -> None:
    assert messages_of({"instruction": "Add.", "input": "1 2", "output": "3"})[0]["content"] == "Add.\n\n1 2"


@pytest.mark.parametrize(
    "row", [{}, {"messages": []}, {"messages": [{"role": "user"}]}, {"messages": ["hello"]}, {"instruction": "a"}]
)
def test_what_is_no_conversation_is_a_bad_row(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow):
        messages_of(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [({}, "no field 'text'"), ({"text": None}, "field 'text' is null"), ({"text": 5}, "field 'text' is no string")],
)
def test_a_row_without_text_is_a_bad_row(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        text_of(row, SourceConfig(path="a.jsonl"), no_chat)


def test_the_text_is_in_the_field_that_the_source_names() -> None:
    source = SourceConfig(path="a.jsonl", text_key="body")
    assert text_of({"text": "A title.", "body": "A text."}, source, no_chat) == "A text."
    with pytest.raises(BadRow, match="no field 'body'"):
        text_of({"text": "A title."}, source, no_chat)


def test_a_conversation_that_the_template_refuses_is_a_bad_row() -> None:
    with pytest.raises(BadRow, match="the chat template refuses it: roles must alternate"):
        text_of({"messages": QUESTION}, SourceConfig(path="a.jsonl", kind="chat"), refusing)


@pytest.mark.parametrize("added", [3, ["x"], {"a": "b"}, 0])
def test_an_alpaca_input_that_is_no_string_is_a_bad_row(added: Any) -> None:
    with pytest.raises(BadRow, match="field 'input' is neither a string nor null"):
        messages_of({"instruction": "Why?", "input": added, "output": "So."})
    assert messages_of({"instruction": "Why?", "input": None, "output": "So."}) == QUESTION


def test_the_fields_that_are_looked_at_are_those_of_text_filters_and_chats() -> None:
    text = SourceConfig(path="a.parquet", text_key="body", filters=("meta.score >= 4", "language == en"))
    assert needed_fields(text) == read_fields(text) == {"body", "meta", "language"}
    chat = SourceConfig(path="a.parquet", kind="chat", filters=("score >= 4",))
    assert needed_fields(chat) == {"score"}
    assert read_fields(chat) == {"score", "conversations", "messages", "instruction", "input", "output"}
