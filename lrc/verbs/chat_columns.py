"""Two models' answers side by side: in columns that grow on a wide terminal, elsewhere one after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from transformers import TextStreamer

STREAMED = {"skip_prompt": True, "skip_special_tokens": True}
"""What is streamed of an answer: neither the question nor marks of its end."""
WIDE = 100
"""Columns of a terminal that two answers stand beside each other in."""


@contextmanager
def side_by_side(tokenizers: Sequence[Any], titles: Sequence[str]) -> Iterator[Iterator[TextStreamer]]:
    """Give one streamer a model, to be used one after the other, that show their answers under the titles.

    Args:
        tokenizers: Of the models, in the order of the answers.
        titles: What each answer stands under.
    """
    console = Console()
    if not (console.is_terminal and console.width >= WIDE):
        yield _in_turn(tokenizers, titles)
        return
    texts = [Text() for _ in tokenizers]
    with Live(_table(titles, texts), console=console, refresh_per_second=12, vertical_overflow="visible") as live:
        yield iter([_Column(tokenizer, text, live) for tokenizer, text in zip(tokenizers, texts, strict=True)])


def _in_turn(tokenizers: Sequence[Any], titles: Sequence[str]) -> Iterator[TextStreamer]:
    """Make each streamer when its answer begins, under a line with its title."""
    for tokenizer, title in zip(tokenizers, titles, strict=True):
        print(f"{title}:", flush=True)
        yield TextStreamer(tokenizer, **STREAMED)


def _table(titles: Sequence[str], texts: Sequence[Text]) -> Table:
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0), header_style="bold")
    for title in titles:
        table.add_column(title, ratio=1, overflow="fold")
    table.add_row(*texts)
    return table


class _Column(TextStreamer):
    """Appends what its model writes to one cell of the table."""

    def __init__(self, tokenizer: Any, text: Text, live: Live) -> None:
        super().__init__(tokenizer, **STREAMED)
        self._text = text
        self._live = live

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Show a piece of the answer; called by the streamer for every word."""
        self._text.append(text)
        if stream_end:
            self._live.refresh()
