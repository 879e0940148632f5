"""Made-up rows of the published tasks, in the fields of the stock task files, and a byte-level model to score."""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_teacher

WORDS = ("river", "stone", "cloud", "walks", "under", "seven", "paints", "the", "old", "sings", "a", "small", "house")
SUBJECTS = {"anatomy": 5, "astronomy": 4, "formal_logic": 4, "marketing": 3, "virology": 1}
"""MMLU subject -> rows; of four groups, one subject with a single row."""
NUM_ROWS = 12


def write_tasks_data(folder: Path, *, rows: int = NUM_ROWS) -> Path:
    """Write NAME.jsonl for the nine tasks and the examples for few-shot MMLU and ARC-Easy."""
    folder.mkdir()
    noise = random.Random(3)
    for name in MAKERS:
        write_rows(folder / f"{name}.jsonl", [MAKERS[name](noise) for _ in range(rows)])
    write_rows(folder / "arc_easy_validation.jsonl", [arc_row(noise) for _ in range(8)])
    mmlu = [mmlu_row(noise, subject) for subject, count in SUBJECTS.items() for _ in range(count)]
    noise.shuffle(mmlu)
    write_rows(folder / "mmlu.jsonl", mmlu)
    write_rows(folder / "mmlu_dev.jsonl", [mmlu_row(noise, subject) for subject in SUBJECTS for _ in range(3)])
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sentence(noise: random.Random, words: int = 5) -> str:
    """Return so many words in a random order."""
    return " ".join(noise.choice(WORDS) for _ in range(words))


def choices(noise: random.Random, count: int) -> list[str]:
    """Return so many different answers of several lengths."""
    return [f"{sentence(noise, noise.randint(1, 4))} {place}" for place in range(count)]


def arc_row(noise: random.Random, count: int = 4) -> dict[str, Any]:
    """Return a row of ARC's kind."""
    labels = list("ABCDE"[:count])
    question = {"id": str(noise.random()), "question": f"What {sentence(noise)}?", "answerKey": noise.choice(labels)}
    return {**question, "choices": {"text": choices(noise, count), "label": labels}}


def mmlu_row(noise: random.Random, subject: str) -> dict[str, Any]:
    """Return a row of MMLU."""
    answer = noise.randrange(4)
    return {"question": sentence(noise), "subject": subject, "choices": choices(noise, 4), "answer": answer}


def sciq_row(noise: random.Random) -> dict[str, Any]:
    """Return a row of SciQ."""
    names = ("distractor1", "distractor2", "distractor3", "correct_answer")
    answers = dict(zip(names, choices(noise, 4), strict=True))
    return {"question": f"What {sentence(noise)}?", "support": noise.choice(["", sentence(noise, 9)]), **answers}


def winogrande_row(noise: random.Random) -> dict[str, Any]:
    """Return a row of WinoGrande."""
    first, second = choices(noise, 2)
    text = f"{sentence(noise, 3)} _ {sentence(noise, 4)}."
    return {"sentence": text, "option1": first, "option2": second, "answer": noise.choice("12")}


def logiqa_row(noise: random.Random) -> dict[str, Any]:
    """Return a row of LogiQA."""
    asked = {"context": sentence(noise, 12), "question": sentence(noise), "label": noise.choice("abcd")}
    return {**asked, "options": choices(noise, 4)}


def piqa_row(noise: random.Random) -> dict[str, Any]:
    """Return a row of PIQA."""
    first, second = choices(noise, 2)
    return {"goal": sentence(noise), "sol1": first, "sol2": second, "label": noise.randrange(2)}


def boolq_row(noise: random.Random) -> dict[str, Any]:
    """Return a row of BoolQ."""
    return {"passage": sentence(noise, 15), "question": sentence(noise), "label": noise.randrange(2)}


MAKERS = {
    "arc_easy": arc_row,
    "arc_challenge": arc_row,
    "logiqa": logiqa_row,
    "commonsense_qa": lambda noise: arc_row(noise, 5),
    "piqa": piqa_row,
    "winogrande": winogrande_row,
    "boolq": boolq_row,
    "sciq": sciq_row,
}


def byte_model_folder(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save a tiny random Llama whose tokens are bytes, so that it can read any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tiny_teacher(
        "llama", seed=seed, vocab_size=len(vocabulary), max_position_embeddings=1024, **changes
    ).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder
