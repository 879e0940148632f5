"""Chat rows to conversations that can be learnt from: the roles take turns, nobody is silent, the assistant is last."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lrc.data.row_text import BadRow, messages_of, num_bytes
from lrc.data.source_files import list_files, on_this_machine
from lrc.data.source_rows import read_rows


class Conversation(NamedTuple):
    """One row of the chat data."""

    where: str
    """`file:line`, lines from 1 (of parquet: rows)."""
    messages: list[dict[str, str]]
    """`role` and `content` of each turn; none where there is a problem."""
    problem: str
    """Why the row is no usable chat; empty if it is one."""


def read_conversations(source: str, scratch: Path) -> Iterator[Conversation]:
    """Stream the rows of chat data, each as a conversation or with what is wrong with it.

    Args:
        source: File, folder, glob or URL.
        scratch: A folder that remote files are fetched into, one at a time.

    Raises:
        DataError: There is no such file, or one is damaged as a whole.
    """
    for file in list_files(source):
        with on_this_machine(file.path, scratch / "fetched") as path:
            for row in read_rows(path, name=file.path):
                where = f"{file.path}:{row.number}"
                try:
                    if row.value is None:
                        raise BadRow(row.problem)
                    messages = messages_of(row.value)
                    check_turns(messages)
                except BadRow as problem:
                    yield Conversation(where, [], str(problem))
                else:
                    yield Conversation(where, messages, "")


def check_turns(messages: list[dict[str, str]]) -> None:
    """Check that a conversation is an optional system message, then user and assistant in turn, ending with an answer.

    Raises:
        BadRow: It is not, a user or the assistant says nothing, or what is said is no text that UTF-8 can write.
    """
    for number, message in enumerate(messages, start=1):
        try:
            num_bytes(message["content"])
        except BadRow as problem:
            raise BadRow(f"turn {number} of {len(messages)}: the content is no text: {problem}") from None
    first = 1 if messages[0]["role"] == "system" else 0
    if len(messages) == first:
        raise BadRow("a system message alone")
    for number, message in enumerate(messages[first:]):
        wanted = ("user", "assistant")[number % 2]
        turn = f"turn {first + number + 1} of {len(messages)}"
        if message["role"] != wanted:
            raise BadRow(f"{turn}: the role must be {wanted!r}, found {message['role']!r}")
        if not message["content"].strip():
            raise BadRow(f"{turn}: the content of the {wanted} is empty")
    if messages[-1]["role"] != "assistant":
        raise BadRow("the last turn must be the assistant's, or there is nothing to learn after it")
