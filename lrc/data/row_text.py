"""From a source's row to a document's text: filters on its fields, and chats through the chat template."""

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import TemplateError

from lrc.data_config import FILTER, SourceConfig

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
ROLES = {"human": "user", "gpt": "assistant"}
CHAT_FIELDS = ("conversations", "messages", "instruction", "input", "output")


class BadRow(Exception):
    """A row that can't be used; its text is the reason."""


def needed_fields(source: SourceConfig) -> set[str]:
    """Name the fields that every row of a source must have: that of the text, and those that filters look into."""
    fields = {match[1].split(".")[0] for match in map(FILTER.fullmatch, source.filters) if match}
    return fields | ({source.text_key} if source.kind == "text" else set())


def read_fields(source: SourceConfig) -> set[str]:
    """Name the fields that are looked at: those needed, and all that a chat may stand in."""
    return needed_fields(source) | (set(CHAT_FIELDS) if source.kind == "chat" else set())


def num_bytes(text: str) -> int:
    """Return the size of a text in UTF-8.

    Raises:
        BadRow: It has none, for it holds half a surrogate pair, which JSON can write.
    """
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise BadRow("half a surrogate pair") from None


def meets(row: dict[str, Any], text: str) -> bool:
    """Tell whether a row meets a filter such as `int_score >= 4`.

    Raises:
        BadRow: The row has no such field, or one that can't be compared.
    """
    match = FILTER.fullmatch(text)
    assert match is not None, "the recipe was validated"
    key, sign, wanted = match.groups()
    value: Any = row
    for name in key.split("."):
        if not isinstance(value, dict) or name not in value:
            raise BadRow(f"no field {key!r}")
        value = value[name]
    try:
        return bool(OPERATORS[sign](value, _literal(wanted)))
    except TypeError:
        raise BadRow(f"field {key!r} can't be compared") from None


def text_of(row: dict[str, Any], source: SourceConfig, chat_text: Callable[[list[dict[str, str]]], str]) -> str:
    """Return the document of a row; `chat_text` is the chat template.

    Raises:
        BadRow: A field is missing or of the wrong kind, or the chat template refuses the conversation.
    """
    if source.kind == "chat":
        try:
            return chat_text(messages_of(row))
        except TemplateError as error:
            raise BadRow(f"the chat template refuses it: {error}") from None
    if source.text_key not in row:
        raise BadRow(f"no field {source.text_key!r}")
    text = row[source.text_key]
    if not isinstance(text, str):
        raise BadRow(f"field {source.text_key!r} is {'null' if text is None else 'no string'}")
    return text


def messages_of(row: dict[str, Any]) -> list[dict[str, str]]:
    """Read a conversation: OpenHermes `conversations`, OpenAI `messages`, or Alpaca's three fields.

    Raises:
        BadRow: It is none of these.
    """
    if isinstance(row.get("conversations"), list):
        turns = [_turn(turn, "from", "value") for turn in row["conversations"]]
    elif isinstance(row.get("messages"), list):
        turns = [_turn(turn, "role", "content") for turn in row["messages"]]
    elif isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        added = row.get("input")
        if added is not None and not isinstance(added, str):
            raise BadRow("field 'input' is neither a string nor null")
        question = "\n\n".join(part for part in (row["instruction"], added) if part)
        turns = [("user", question), ("assistant", row["output"])]
    else:
        raise BadRow("no conversations, messages, or instruction and output")
    if not turns:
        raise BadRow("an empty conversation")
    return [{"role": ROLES.get(role, role), "content": content} for role, content in turns]


def _turn(turn: Any, role: str, content: str) -> tuple[str, str]:
    if isinstance(turn, dict) and isinstance(turn.get(role), str) and isinstance(turn.get(content), str):
        return turn[role], turn[content]
    raise BadRow(f"a turn must have the strings {role!r} and {content!r}")


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
