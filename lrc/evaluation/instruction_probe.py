"""A small probe of instruction following: prompts that ask for a form, answers checked by rule, as IFEval does it.

What an answer says is not judged, only whether it has the form that was asked for. An empty answer has none.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from lrc.evaluation.generation import write_tokens

TOPICS = ("the sun", "a good breakfast", "learning to swim", "trees in winter", "a letter to a friend", "trains")


class Probe(NamedTuple):
    """One prompt."""

    rule: str
    prompt: str
    holds: Callable[[str], bool]
    """Whether an answer, stripped and not empty, has the form."""


class ProbeAnswer(NamedTuple):
    """What a model made of a prompt."""

    rule: str
    prompt: str
    answer: str
    is_right: bool


def words(text: str) -> list[str]:
    """Split a text into words; marks at their ends don't count."""
    return [word for word in (part.strip(".,;:!?\"'()*") for part in text.split()) if word]


def list_items(text: str) -> list[str]:
    """Return the lines that are items of a list: bullets or numbers."""
    return re.findall(r"^\s*(?:[-*•]|\d+[.)])\s+\S.*$", text, re.MULTILINE)


def is_json_object(text: str) -> bool:
    """Whether a text is one JSON object, a code fence around it left out."""
    inner = re.sub(r"^```(?:json)?\s*|\s*```$", "", text)
    try:
        return isinstance(json.loads(inner), dict)
    except ValueError:
        return False


def is_json_with_title(text: str) -> bool:
    """Whether a text is a JSON object with the key `title`."""
    return is_json_object(text) and "title" in json.loads(re.sub(r"^```(?:json)?\s*|\s*```$", "", text))


def is_one_word(text: str) -> bool:
    """Whether a text is a single word of letters."""
    return len(words(text)) == 1 and words(text)[0].isalpha()


def is_yes_or_no(text: str) -> bool:
    """Whether a text is yes or no and nothing else."""
    return [word.lower() for word in words(text)] in (["yes"], ["no"])


def is_a_number(text: str) -> bool:
    """Whether a text is a number in digits and nothing else."""
    return re.fullmatch(r"-?[\d,]+(?:\.\d+)?\.?", text) is not None


def has_three_items(text: str) -> bool:
    """Whether a text holds a list of exactly three items."""
    return len(list_items(text)) == 3


def has_five_numbers(text: str) -> bool:
    """Whether the items of a text's list are numbered 1 to 5."""
    return re.findall(r"^\s*(\d+)[.)]\s+\S", text, re.MULTILINE) == ["1", "2", "3", "4", "5"]


def is_one_sentence(text: str) -> bool:
    """Whether a text is one sentence that ends with a mark."""
    return re.fullmatch(r"[^.!?]+[.!?]", text) is not None


def is_lower_case(text: str) -> bool:
    """Whether a text of at least four words has no capital letter."""
    return text == text.lower() and text != text.upper() and len(words(text)) >= 4


def is_upper_case(text: str) -> bool:
    """Whether a text of at least four words has capital letters alone."""
    return text == text.upper() and text != text.lower() and len(words(text)) >= 4


def has_no_comma(text: str) -> bool:
    """Whether a text of at least eight words has no comma."""
    return "," not in text and len(words(text)) >= 8


def is_short(text: str) -> bool:
    """Whether a text has three to ten words."""
    return 3 <= len(words(text)) <= 10


def starts_with_certainly(text: str) -> bool:
    """Whether the first word is Certainly."""
    return text.startswith("Certainly")


def ends_with_done(text: str) -> bool:
    """Whether a text says something and ends with DONE."""
    return text.rstrip(".").endswith("DONE") and len(words(text)) > 3


def is_quoted(text: str) -> bool:
    """Whether double quotation marks stand around the whole."""
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'


RULES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "one word": ("Name one thing that comes to mind about {topic}. Answer with exactly one word.", is_one_word),
    "yes or no": ("Do most people like {topic}? Answer only with yes or no.", is_yes_or_no),
    "a number": ("How many letters does the phrase '{topic}' have? Answer only with a number.", is_a_number),
    "three items": ("List three facts about {topic} as bullet points, one a line starting with '- '.", has_three_items),
    "five numbers": ("Write a numbered list of five words about {topic}: 1. to 5., one a line.", has_five_numbers),
    "one sentence": ("Describe {topic} in exactly one sentence.", is_one_sentence),
    "lower case": ("Write a sentence about {topic} in lower case only, without any capital letter.", is_lower_case),
    "upper case": ("Write a sentence about {topic} IN CAPITAL LETTERS ONLY.", is_upper_case),
    "no comma": ("Write two sentences about {topic} without using any comma.", has_no_comma),
    "short": ("Say something about {topic} in at most ten words.", is_short),
    "first word": ("Tell me about {topic}. Begin your answer with the word Certainly.", starts_with_certainly),
    "last word": ("Tell me about {topic} in one sentence and end your answer with the word DONE.", ends_with_done),
    "quotation": ("Write a sentence about {topic}. Put your whole answer in double quotation marks.", is_quoted),
    "JSON": ("Reply with a JSON object that has one key and a value about {topic}. No other text.", is_json_object),
    "JSON key": ('Reply only with JSON: an object with the key "title", a title about {topic}.', is_json_with_title),
}
"""Name -> prompt and check."""


def instruction_probes() -> Iterator[Probe]:
    """Yield every rule with every topic."""
    for rule, (prompt, holds) in RULES.items():
        for topic in TOPICS:
            yield Probe(rule, prompt.format(topic=topic), holds)


@torch.no_grad()
def probe_instructions(
    model: Any,
    tokenizer: Any,
    *,
    max_new_tokens: int = 96,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[ProbeAnswer]:
    """Ask a model every prompt through its chat template, greedily, and check the answers.

    Args:
        model: Stock causal LM.
        tokenizer: With a chat template.
        max_new_tokens: Longest answer.
        progress: Called with (prompts done, prompts).
    """
    answers, probes = [], list(instruction_probes())
    for number, probe in enumerate(probes, start=1):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": probe.prompt}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        output = write_tokens(
            model,
            {name: inputs[name] for name in ("input_ids", "attention_mask")},
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        answers.append(ProbeAnswer(probe.rule, probe.prompt, answer, bool(answer) and probe.holds(answer)))
        progress(number, len(probes))
    return answers
