"""What is learnt of a chat: the answers and their end marks, whatever the template looks like."""

from datetime import datetime
from typing import Any

import pytest

from lrc.clone.head import IGNORED_LABEL
from lrc.data.row_text import BadRow
from lrc.errors import DataError
from lrc.sft.chat_encoder import ChatEncoder, Sample, shared_length
from tests.sft.tiny_chats import CHATML, Turns, chat_tokenizer, turns

MARKED = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""CHATML with the marks that tell transformers what the assistant says: an independent reference."""
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Like Qwen3's: the last answer is written otherwise than the ones before it."""
BRACKETS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} <|im_end|>{% endif %}{% endfor %}"
)
"""Like Llama-2's: no generation prompt of its own, a space before the answer."""
OPENED = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
"""Like DeepSeek-R1's: the generation prompt opens a thought that the answers of the data don't have."""
TWO_MARKS = CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
"""Like Phi-3's: the end mark of the turn, a line break, and the mark that ends the text."""
DATED = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}{%- endif %}"
    "{{- 'Today: ' + date_string + strftime_now(\"/%H\") + '\n' }}"
)
"""Like Llama-3.2's: the day that it is written on stands in front."""
CHATS = [
    turns("Hi", "Hello"),
    turns("Hi", "Hello", "What is 2+2?", "4\n"),
    turns("Hi", "Hello", system="Be brief."),
    turns("ä € <|im_end|>?", "\nßtart 日本", "again", " \n a "),
]


def encoder_of(template: str | None, **tokenizer: Any) -> ChatEncoder:
    made = chat_tokenizer(template, **tokenizer)
    return ChatEncoder(made, {made.eos_token_id})


def learnt(samples: list[Sample], tokenizer: Any) -> list[list[str]]:
    """Return the text of each run of learnt tokens, of each sample."""
    found = []
    for sample in samples:
        runs: list[list[int]] = [[]]
        for label in sample.labels:
            if label != IGNORED_LABEL:
                runs[-1].append(label)
            elif runs[-1]:
                runs.append([])
        found.append([tokenizer.decode(run) for run in runs if run])
    return found


@pytest.mark.parametrize("messages", CHATS)
def test_the_answers_are_what_marks_in_the_template_would_tell(messages: Turns) -> None:
    marked = chat_tokenizer(MARKED).apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    (sample,) = encoder_of(CHATML).encode(messages)
    assert sample.ids == marked["input_ids"]
    assert [int(label != IGNORED_LABEL) for label in sample.labels] == marked["assistant_masks"]
    assert all(label in (token, IGNORED_LABEL) for token, label in zip(sample.ids, sample.labels, strict=True))
    assert sample.num_unended == 0


@pytest.mark.parametrize("messages", CHATS)
def test_the_tokens_before_an_answer_are_the_ones_that_generation_starts_from(messages: Turns) -> None:
    tokenizer = chat_tokenizer(CHATML)
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    (sample,) = encoder_of(CHATML).encode(messages)
    assert sample.ids[: len(prompt)] == prompt
    assert all(label != IGNORED_LABEL for label in sample.labels[len(prompt) : -1])
    assert sample.labels[-1] == IGNORED_LABEL  # the template's newline after the end mark is never generated


def test_a_template_without_a_generation_prompt_works() -> None:
    samples = encoder_of(BRACKETS).encode(turns("a", "b", "c", "d"))
    assert learnt(samples, chat_tokenizer(BRACKETS)) == [[" b <|im_end|>", " d <|im_end|>"]]


def test_a_template_that_rewrites_earlier_answers_gives_a_sequence_for_each_answer() -> None:
    tokenizer = chat_tokenizer(THINKING)
    samples = encoder_of(THINKING).encode(turns("a", "b", "c", "d"))
    assert learnt(samples, tokenizer) == [["<think></think>b<|im_end|>"], ["<think></think>d<|im_end|>"]]
    assert [tokenizer.decode(sample.ids) for sample in samples] == [
        tokenizer.apply_chat_template(turns(*said), tokenize=False) for said in (("a", "b"), ("a", "b", "c", "d"))
    ]


def test_a_generation_prompt_that_goes_on_otherwise_than_the_answer_is_cut_where_they_part() -> None:
    samples = encoder_of(OPENED).encode(turns("a", "b"))
    assert learnt(samples, chat_tokenizer(OPENED)) == [["b<|im_end|>"]]


def test_a_token_across_the_border_of_prompt_and_answer_is_learnt() -> None:
    newline, letter = "Ċ", "b"  # the byte-level alphabet's newline
    merges = ((newline, letter),)
    samples = encoder_of(CHATML, merges=merges).encode(turns("a", "b"))
    assert learnt(samples, chat_tokenizer(CHATML, merges=merges)) == [["\nb<|im_end|>"]]


def test_an_answer_without_an_end_mark_is_counted() -> None:
    template = CHATML.replace("{{ m['content'] }}<|im_end|>", "{{ m['content'] }}")
    (sample,) = encoder_of(template).encode(turns("a", "b", "c", "d"))
    assert sample.num_unended == 2


@pytest.mark.parametrize("between", ["\n", "", " \n\n"])
def test_of_two_end_marks_that_only_white_space_parts_the_first_is_learnt(between: str) -> None:
    template = TWO_MARKS.replace("<|im_end|>\n{% endfor %}", f"<|im_end|>{between}{{% endfor %}}")
    tokenizer = chat_tokenizer(template)
    encoder = ChatEncoder(tokenizer, {tokenizer.eos_token_id, tokenizer.pad_token_id})
    samples = encoder.encode(turns("a", "b", "c", "d<|im_end|>e"))
    assert [tokenizer.decode(sample.ids).endswith(f"<|im_end|>{between}<|endoftext|>") for sample in samples] == [
        True
    ] * 2
    assert learnt(samples, tokenizer) == [["b<|im_end|>"], ["d<|im_end|>e<|im_end|>"]]
    assert [sample.num_unended for sample in samples] == [0, 0]


def test_chats_are_written_as_of_the_moment_that_is_kept() -> None:
    tokenizer = chat_tokenizer(DATED + CHATML)
    encoder = ChatEncoder(tokenizer, {tokenizer.eos_token_id})
    encoder.keep_date(datetime(2024, 7, 1, 23))
    (sample,) = encoder.encode(turns("a", "b"))
    assert tokenizer.decode(sample.ids).startswith("Today: 01 Jul 2024/23\n<|im_start|>system\n")
    assert learnt([sample], tokenizer) == [["b<|im_end|>"]]


def test_a_template_that_makes_up_the_form_of_its_date_is_refused() -> None:
    template = "{% set form = '%Y' %}{{ strftime_now('%d') }}{{ strftime_now(form) }}" + CHATML
    tokenizer = chat_tokenizer(template)
    encoder = ChatEncoder(tokenizer, {tokenizer.eos_token_id})
    encoder.encode(turns("a", "b"))
    encoder.keep_date(datetime(2024, 7, 1))
    with pytest.raises(BadRow, match="must be given its format as a plain string"):
        encoder.encode(turns("a", "b"))


def test_a_template_that_writes_the_question_otherwise_in_the_prompt_is_refused() -> None:
    template = CHATML.replace(
        "{% for m in messages %}", "{% if add_generation_prompt %}!{% endif %}{% for m in messages %}"
    )
    with pytest.raises(BadRow, match="can't be told"):
        encoder_of(template).encode(turns("a", "b"))


def test_a_conversation_that_the_template_refuses_is_a_bad_row() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    with pytest.raises(BadRow, match="refuses it: no system"):
        encoder_of(template).encode(turns("a", "b", system="s"))


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(DataError, match="must have a chat template"):
        encoder_of(None)


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 2], 2), ([1, 9, 3], [1, 2, 3], 1), ("abc", "abd", 2)],
)
def test_the_shared_length_counts_leading_elements(one: Any, other: Any, length: int) -> None:
    assert shared_length(one, other) == length
