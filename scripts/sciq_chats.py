"""Chats of two turns from SciQ's questions, for `lrc sft`: `python scripts/sciq_chats.py OUT`.

SciQ (CC BY-NC 3.0) comes with the embedded benchmarks; it is a sample to try fine-tuning with, and a model that was
tuned on it must not be scored on it. A question with its passage is asked, and answered with the passage's own words.
"""

import json
import sys
from pathlib import Path

from lrc.embedded.benchmarks import embedded_benchmarks

HELD_OUT_EVERY = 10


def chats_of(rows: list[dict[str, str]]) -> list[dict[str, list[dict[str, str]]]]:
    """Return a chat for each row that has a passage."""
    chats = []
    for row in rows:
        passage, question, answer = row["support"].strip(), row["question"].strip(), row["correct_answer"].strip()
        if passage:
            user = {"role": "user", "content": f"{passage}\n\n{question}"}
            chats.append({"messages": [user, {"role": "assistant", "content": f"{answer[:1].upper()}{answer[1:]}."}]})
    return chats


def write_chats(path: Path, chats: list[dict[str, list[dict[str, str]]]]) -> None:
    """Write chats as JSON lines."""
    path.write_text("".join(json.dumps(chat, ensure_ascii=False) + "\n" for chat in chats), encoding="utf-8")


def main(out: Path) -> None:
    """Write `train.jsonl` and `held_out.jsonl` to a folder."""
    lines = (embedded_benchmarks() / "sciq.jsonl").read_text(encoding="utf-8").splitlines()
    chats = chats_of([json.loads(line) for line in lines])
    held_out = chats[::HELD_OUT_EVERY]
    train = [chat for number, chat in enumerate(chats) if number % HELD_OUT_EVERY]
    out.mkdir(parents=True, exist_ok=True)
    write_chats(out / "train.jsonl", train)
    write_chats(out / "held_out.jsonl", held_out)
    print(f"{len(train)} chats to learn from, {len(held_out)} held out")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
