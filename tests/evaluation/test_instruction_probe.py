"""Each rule knows an answer of its form from one that is not, and a model is asked every prompt."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrc.evaluation.instruction_probe import RULES, TOPICS, instruction_probes, probe_instructions
from tests.sft.tiny_chats import chat_student

CASES = {
    "one word": (["Warmth.", "**Warmth**"], ["It is warm", "- - -", "w4rmth"]),
    "yes or no": (["Yes.", "no"], ["Yes, they do", "Maybe"]),
    "a number": (["6", "1,200", "3.5"], ["six", "6 letters", "about 6"]),
    "three items": (
        ["- a\n- b\n- c", "1. a\n2. b\n3. c", "Facts:\n* a\n* b\n* c"],
        ["- a\n- b", "a\nb\nc", "-a\n-b\n-c"],
    ),
    "five numbers": (
        ["1. a\n2. b\n3. c\n4. d\n5. e"],
        ["1. a\n2. b", "- a\n- b\n- c\n- d\n- e", "1. a\n1. b\n1. c\n1. d\n1. e"],
    ),
    "one sentence": (["It is hot!"], ["It is hot. It is far.", "It is hot"]),
    "lower case": (["it is very hot."], ["It is very hot.", "1 2 3 4", "hot"]),
    "upper case": (["IT IS VERY HOT."], ["It is VERY HOT.", "1 2 3 4", "HOT"]),
    "no comma": (["It is very hot and it is very far away."], ["It is hot, and it is very far away.", "Hot."]),
    "short": (["It is hot."], ["hot", "one two three four five six seven eight nine ten eleven"]),
    "first word": (["Certainly! It is hot."], ["It is certainly hot.", "certainly"]),
    "last word": (["It is hot. DONE", "It is very hot DONE."], ["It is hot.", "DONE"]),
    "quotation": (['"It is hot."', "“It is hot.”"], ["It is hot.", '""', 'He said "hot".']),
    "JSON": (['{"a": 1}', '```json\n{"a": 1}\n```'], ["[1]", "{a: 1}", 'Sure: {"a": 1}']),
    "JSON key": (['{"title": "x"}'], ['{"name": "x"}', "title: x"]),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_tells_its_form_from_others(rule: str) -> None:
    holds = RULES[rule][1]
    right, wrong = CASES[rule]
    assert [text for text in right if not holds(text)] == []
    assert [text for text in wrong if holds(text)] == []


def test_every_rule_is_asked_with_every_topic() -> None:
    probes = list(instruction_probes())
    assert len(probes) == len({probe.prompt for probe in probes}) == len(RULES) * len(TOPICS)


def test_a_model_answers_every_prompt(tmp_path: Path) -> None:
    folder = chat_student(tmp_path / "student")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    seen: list[tuple[int, int]] = []
    answers = probe_instructions(model, tokenizer, max_new_tokens=3, progress=lambda *done: seen.append(done))
    assert [answer.prompt for answer in answers] == [probe.prompt for probe in instruction_probes()]
    assert seen[-1] == (len(answers), len(answers))
    assert all(answer.is_right == (bool(answer.answer) and RULES[answer.rule][1](answer.answer)) for answer in answers)
