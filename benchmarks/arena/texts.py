"""The four texts of a cell, from a folder of corpora or from what the demo embeds, as JSON lines in one fixed order.

`train` is trained on. `development` is of its genre: learning rates and sweeps are judged on it. `held_out` is of
another genre, and nothing is chosen on it. `fresh` is measured once, at the end of a cell, and shown only when asked
for. A document stands in one of the four.
"""

import ast
import gzip
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrc.embedded.text import HELD_OUT_NAME, TRAIN_NAME, embedded_text_folder
from lrc.errors import DataError
from lrc.training.beside import write_beside
from lrc.verbs.lm_eval_extra import require_lm_eval
from lrc.verbs.progress import say

from .alone import alone

ROLES = ("train", "development", "held_out", "fresh")
MEASURED = ("development", "held_out")
"""Measured at every point of the curve."""
FILES = {
    "train": ("train.jsonl", "train.jsonl.gz", "corpus/textbooks_train.jsonl.gz"),
    "development": ("development.jsonl", "development.jsonl.gz", "corpus/textbooks_validation.jsonl.gz"),
    "held_out": ("held_out.jsonl", "held_out.jsonl.gz", "wikitext2/validation.jsonl"),
    "fresh": ("fresh.jsonl", "fresh.jsonl.gz", "wikitext2/test.jsonl"),
}
"""Where `--data DIR` is looked through for each text; the first that is there counts."""
FIELDS = ("text", "page")
"""Fields that may hold a row's text. WikiText's `page` has its marks (` @-@ `, ` ,`) undone, as lm-eval reads it."""
HELD_OUT_BYTES = 400_000
MODULES = ("argparse", "csv", "datetime", "decimal", "difflib", "doctest", "fractions", "heapq", "inspect", "ipaddress")
MORE_MODULES = ("calendar", "logging", "optparse", "pathlib", "random", "statistics", "subprocess", "tarfile", "turtle")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Files by role, and what tells them from others."""

    paths: dict[str, Path]
    sha256: dict[str, str]
    origin: str
    """For people: where they come from."""


def prepare_texts(folder: Path, *, data: Path | None, train_bytes: int, is_tiny: bool = False) -> Texts:
    """Write the four texts below `folder`, or find them there.

    Args:
        folder: Where texts are kept.
        data: Folder of corpora; None: what the demo embeds.
        train_bytes: Text to train on at most.
        is_tiny: Take what Python itself has, so that nothing is fetched.

    Raises:
        DataError: A text is missing, or two texts share a document.
    """
    documents = _from_folder(data) if data is not None else _from_python() if is_tiny else _embedded()
    name = "python" if data is None and is_tiny else "embedded" if data is None else f"folder {data.name}"
    chosen = {role: _cut(_mixed(documents[role]), train_bytes if role == "train" else HELD_OUT_BYTES) for role in ROLES}
    _check_apart(chosen)
    content = {role: "".join(json.dumps({"text": text}) + "\n" for text in texts) for role, texts in chosen.items()}
    sha256 = {role: hashlib.sha256(text.encode()).hexdigest() for role, text in content.items()}
    paths = {role: folder / f"{role}-{sha256[role][:12]}.jsonl" for role in ROLES}
    with alone(folder / "texts"):
        for role, path in paths.items():
            if not path.is_file():
                write_beside(path, content[role])
    return Texts(paths=paths, sha256=sha256, origin=name)


def _from_folder(data: Path) -> dict[str, list[str]]:
    found = {}
    for role, names in FILES.items():
        path = next((data / name for name in names if (data / name).is_file()), None)
        if path is None:
            raise DataError(f"{data} must hold the {role} text as {' or '.join(names)}, but has none of them.")
        found[role] = _read_rows(path)
    return found


def _embedded() -> dict[str, list[str]]:
    """BoolQ's passages, Python's language reference as the other genre, docstrings as the fresh one."""
    folder = embedded_text_folder(report=say)
    return {
        "train": _read_rows(folder / TRAIN_NAME),
        "development": _read_rows(folder / HELD_OUT_NAME),
        "held_out": python_topics(),
        "fresh": list(docstrings((*MODULES, *MORE_MODULES))),
    }


def _from_python() -> dict[str, list[str]]:
    """Python's language reference to train on and to develop with, docstrings as the other genre and the fresh text."""
    topics = _mixed(python_topics())
    last = max(1, len(topics) // 10)
    return {
        "train": topics[last:],
        "development": topics[:last],
        "held_out": list(docstrings(MODULES)),
        "fresh": list(docstrings(MORE_MODULES)),
    }


def python_topics() -> list[str]:
    """Return the pages of Python's own `help`.

    Raises:
        DataError: This Python was installed without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("This Python has no module pydoc_data. Name a folder of corpora with --data DIR.") from error
    return [topics[name] for name in sorted(topics)]


def docstrings(modules: tuple[str, ...]) -> Iterator[str]:
    """Yield the long docstrings of modules of the standard library, each once, read from their source."""
    library = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    for name in modules:
        path = next((path for path in (library / f"{name}.py", library / name / "__init__.py") if path.is_file()), None)
        if path is None:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) > 150 and text not in seen:
                    seen.add(text)
                    yield text


def _read_rows(path: Path) -> list[str]:
    raw = path.read_bytes()
    texts = []
    for number, line in enumerate((gzip.decompress(raw) if path.suffix == ".gz" else raw).splitlines(), start=1):
        row = json.loads(line)
        field = next((field for field in FIELDS if isinstance(row.get(field), str)), None)
        if field is None:
            raise DataError(f"{path}:{number}: a row must have its text in {' or '.join(FIELDS)}, found {sorted(row)}.")
        texts.append(_plain_page(row) if field == "page" else row[field])
    return texts


def _plain_page(row: dict[str, Any]) -> str:
    require_lm_eval("A text with WikiText's pages")
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    plain: str = wikitext_detokenizer(row)
    return plain


def _mixed(texts: list[str]) -> list[str]:
    """Put documents into an order that depends on them alone, so that a cut takes something of every source."""
    return sorted(dict.fromkeys(texts), key=lambda text: hashlib.sha256(text.encode()).digest())


def _cut(texts: list[str], num_bytes: int) -> list[str]:
    kept, size = [], 0
    for text in texts:
        if kept and size >= num_bytes:
            break
        kept.append(text)
        size += len(text.encode())
    return kept


def _check_apart(chosen: dict[str, list[str]]) -> None:
    owner: dict[str, str] = {}
    for role, texts in chosen.items():
        if not texts:
            raise DataError(f"The {role} text is empty.")
        for text in texts:
            if text in owner:
                raise DataError(
                    f"The texts {owner[text]} and {role} share the document {text[:60]!r}. Take it out of one."
                )
            owner[text] = role
