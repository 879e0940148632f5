"""A conversation to token ids and labels: only what the assistant says, and the mark that ends it, is learnt.

Chat templates rarely mark the assistant's part, so it is found by prefixes: the tokens of the conversation up to the
generation prompt are what the model is given, and the tokens after them are its answer. That holds for any template
whose prompt is the beginning of the whole, and makes the training prompt equal to the one of generation.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from jinja2 import TemplateError

from lrc.clone.head import IGNORED_LABEL
from lrc.data.chat_date import dated
from lrc.data.row_text import BadRow
from lrc.errors import DataError


class Sample(NamedTuple):
    """One training sequence."""

    ids: list[int]
    labels: list[int]
    """The id at each position that is learnt (not shifted), -100 elsewhere."""
    num_unended: int
    """Answers without an end mark, after which the model would not learn to stop."""


class ChatEncoder:
    """A tokenizer with a chat template, as fine-tuning uses it."""

    def __init__(self, tokenizer: Any, end_ids: set[int]) -> None:
        """Take a tokenizer of transformers and the ids that end an answer.

        Raises:
            DataError: The tokenizer has no chat template.
        """
        if tokenizer is None or tokenizer.chat_template is None:
            raise DataError(
                "The student's tokenizer must have a chat template to make text of chats, and has none. Put the "
                "chat_template.jinja of its teacher (or of a sibling that chats) into the folder."
            )
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._template: str | None = None

    def keep_date(self, now: datetime) -> None:
        """Write all chats as of one moment: some templates (Llama-3.2's) put the date into the system message."""
        self._template = dated(self._tokenizer.get_chat_template(), now)

    def encode(self, messages: list[dict[str, str]]) -> list[Sample]:
        """Make the training sequences of a conversation.

        One, if the template writes every turn in the same way whatever follows it. Else (Qwen3 leaves the thinking out
        of all but the last answer) one for each answer, with what the template makes of the turns before it.

        Raises:
            BadRow: The template refuses the conversation, or writes the prompt of an answer so that it is not the
                beginning of the whole.
        """
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        texts = {index: self._text(messages[: index + 1]) for index in answers}
        whole = texts[answers[-1]]
        if all(whole.startswith(text) for text in texts.values()):
            return [self._sample(messages, whole, texts)]
        return [self._sample(messages, text, {index: text}) for index, text in texts.items()]

    def _sample(self, messages: list[dict[str, str]], whole: str, texts: dict[int, str]) -> Sample:
        """Label the answers of `whole`; `texts` has the text up to the end of each."""
        ids = self._ids(whole)
        labels = [IGNORED_LABEL] * len(ids)
        num_unended = 0
        for index, text in texts.items():
            prompt = self._text(messages[:index], prompt=True)
            _check_prompt(prompt, whole, messages[index - 1]["content"])
            begin = shared_length(self._ids(prompt), ids)
            end = len(ids) if text == whole else shared_length(self._ids(text), ids)
            mark = self._end_mark(ids, begin, end)
            num_unended += mark is None
            end = end if mark is None else mark + 1  # what a template writes after the mark is never generated
            labels[begin:end] = ids[begin:end]
        return Sample(ids, labels, num_unended)

    def _end_mark(self, ids: list[int], begin: int, end: int) -> int | None:
        """Return the place of the mark that ends the answer in `ids[begin:end]`, or None.

        It is the last one, or the first of several that only white space parts: Phi-3 writes <|end|>, a line break and
        <|endoftext|>, and generation stops at the former.
        """
        marks = [place for place in range(begin, end) if ids[place] in self._end_ids]
        while len(marks) > 1 and not self._tokenizer.decode(ids[marks[-2] + 1 : marks[-1]]).strip():
            marks.pop()
        return marks[-1] if marks else None

    def _text(self, messages: list[dict[str, str]], *, prompt: bool = False) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, chat_template=self._template, tokenize=False, add_generation_prompt=prompt
                )
            )
        except TemplateError as error:
            raise BadRow(f"the chat template refuses it: {error}") from None

    def _ids(self, text: str) -> list[int]:
        # the template writes the begin mark itself
        found: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found


def _check_prompt(prompt: str, whole: str, question: str) -> None:
    """Check that a prompt begins the whole at least up to the end of the last question."""
    shared = shared_length(prompt, whole)
    if shared < len(prompt) and shared < prompt.rfind(question.strip()) + len(question.strip()):
        raise BadRow(
            "the chat template writes the prompt of an answer otherwise than the beginning of the whole conversation, "
            "so where the answer begins can't be told"
        )


def shared_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Count the leading elements that two sequences share."""
    if other[: len(one)] == one:
        return len(one)
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
