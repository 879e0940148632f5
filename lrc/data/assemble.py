"""The last stage of `lrc prepare`: budgets met to the document, the manifest, the list of bad rows, the preview."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lrc.data.benchmark_rows import index_path, list_benchmarks
from lrc.data.documents import LISTED
from lrc.data.file_hash import file_sha256
from lrc.data.plan_tasks import refuse_seen
from lrc.data.prepare_task import HELD_OUT, OVER_BUDGET, PrepareTask
from lrc.data.shards import FORMAT, MANIFEST, START_BYTES, START_DTYPE, ShardBlocks, token_dtype
from lrc.data.task_results import result_path, shard_name
from lrc.errors import DataError

BAD_ROWS = "bad_rows.jsonl"
HELD_OUT_ROWS = "held_out.jsonl"
PREVIEW = "preview.txt"
PREVIEW_BLOCKS = 4
BORDER = "\n-------- document --------\n"


def assemble(task: PrepareTask, folder: Path, *, tokenizer_sha256: str) -> dict[str, Any]:
    """Make a folder of finished tasks a shard folder; a second call after a kill does the same again.

    Args:
        task: What the tasks were.
        folder: Where they wrote.
        tokenizer_sha256: The tokenizer's hash.

    Returns:
        The manifest.

    Raises:
        DataError: Too many rows are bad, two files are the same, or nothing was kept.
    """
    sources = [_gather(task, number, folder) for number in range(len(task.settings.sources))]
    seen: dict[str, str] = {}
    for file in (file for source in sources for file in source["files"]):
        refuse_seen(seen, file["sha256"], file["path"])
    _write_bad_rows(sources, folder)
    for source in sources:
        _refuse_bad_share(source, task.settings.max_bad_share, folder / BAD_ROWS)
    held_out = _gather_held_out(task, sources, folder) if task.settings.held_out_share else None
    shards = [file.pop("shard") for source in sources for file in source["files"]]
    shards = [shard for shard in shards if shard["tokens"]]
    if not shards:
        raise DataError(f"No row of the sources was kept: {json.dumps([source['rejected'] for source in sources])}.")
    manifest = {
        "format": FORMAT,
        "token_dtype": token_dtype(task.vocab_size).str,
        "largest_id": max(source.pop("largest_id") for source in sources),
        "tokenizer_sha256": tokenizer_sha256,
        "tokens": sum(source["tokens"] for source in sources),
        "shards": shards,
        "sources": [{key: value for key, value in source.items() if key != "first_bad"} for source in sources],
    }
    if task.settings.decontaminate:
        paths = [file.path for file in list_benchmarks(task.settings.decontaminate)]
        manifest["benchmarks"] = {"files": paths, "ngrams_sha256": file_sha256(index_path(folder))}
    if held_out is not None:
        manifest["held_out"] = {"documents": held_out}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def write_preview(folder: Path, tokenizer: Any, *, sequence_length: int, vocab_size: int) -> None:
    """Decode the first blocks as text, with the borders of documents shown."""
    blocks = ShardBlocks(folder, sequence_length=sequence_length, vocab_size=vocab_size, tokenizer_sha256=None)
    parts = []
    for index in range(min(PREVIEW_BLOCKS, len(blocks))):
        block = blocks.read(index)
        assert block.document_starts is not None
        pieces = [tokenizer.decode(piece) for piece in np.split(block.ids, block.document_starts)]
        parts.append(
            f"======== block {index}, {block.data_class}, {len(block.ids)} tokens ========\n{BORDER.join(pieces)}"
        )
    (folder / PREVIEW).write_text("\n".join(parts) + "\n", encoding="utf-8")


def _gather(task: PrepareTask, number: int, folder: Path) -> dict[str, Any]:
    """Sum a source's tasks up to its budget; the last one is cut behind the document that reaches it."""
    settings = task.settings.sources[number]
    rejected: Counter[str] = Counter()
    found: dict[str, Any] = {**asdict(settings), "rows": 0, "kept": 0, "rejected": rejected, "bad_rows": 0}
    found |= {"tokens": 0, "bytes": 0, "largest_id": 0, "files": [], "first_bad": None}
    for rank, file in enumerate(task.files):
        if file.source != number:
            continue
        if settings.max_tokens is not None and found["tokens"] >= settings.max_tokens:
            break
        result = json.loads(result_path(folder, rank).read_text())
        documents, tokens = result["documents"], result["tokens"]
        if settings.max_tokens is not None and found["tokens"] + tokens > settings.max_tokens:
            documents, tokens = _cut(task, folder / shard_name(rank), settings.max_tokens - found["tokens"])
        rejected.update(result["rejected"])
        if documents < result["documents"]:
            rejected[OVER_BUDGET] += result["documents"] - documents
        found["rows"] += result["rows"]
        found["kept"] += documents
        found["bad_rows"] += result["bad_rows"]
        found["tokens"] += tokens
        found["bytes"] += file.num_bytes
        found["largest_id"] = max(found["largest_id"], result["largest_id"])
        found["first_bad"] = found["first_bad"] or next(_bad_rows(file.path, result), None)
        shard = {"name": shard_name(rank), "tokens": tokens, "documents": documents, "data_class": settings.data_class}
        entry = {"path": file.path, "bytes": file.num_bytes, "sha256": result["sha256"], "rows": result["rows"]}
        found["files"].append({**entry, "kept": documents, "shard": shard})
    return found


def _gather_held_out(task: PrepareTask, sources: list[dict[str, Any]], folder: Path) -> int:
    """Write the documents that were put aside into one file, in the order of the files; returns their number."""
    found = 0
    with open(folder / HELD_OUT_ROWS, "wb") as whole:
        for file in (file for source in sources for file in source["files"]):
            path = (folder / file["shard"]["name"]).with_suffix(HELD_OUT)
            if not path.is_file():  # of chats
                continue
            with open(path, "rb") as part:
                for line in part:
                    found += 1
                    whole.write(line)
    return found


def _cut(task: PrepareTask, stem: Path, room: int) -> tuple[int, int]:
    """Truncate a shard behind the document that fills the room; returns the documents and tokens left."""
    binary, itemsize = stem.with_suffix(".bin"), token_dtype(task.vocab_size).itemsize
    starts = np.fromfile(stem.with_suffix(".starts"), dtype=START_DTYPE)
    ends = np.append(starts[1:], binary.stat().st_size // itemsize)  # after a kill, those of the cut shard
    documents = int(np.searchsorted(ends, room)) + 1
    tokens = int(ends[documents - 1])
    os.truncate(binary, tokens * itemsize)
    os.truncate(stem.with_suffix(".starts"), documents * START_BYTES)
    return documents, tokens


def _write_bad_rows(sources: list[dict[str, Any]], folder: Path) -> None:
    """List the first bad rows of each file, one file's in memory at a time."""
    with open(folder / BAD_ROWS, "w") as listed:
        for file in (file for source in sources for file in source["files"] if source["bad_rows"]):
            result = json.loads((folder / f"{file['shard']['name']}.json").read_text())
            listed.writelines(json.dumps(row) + "\n" for row in _bad_rows(file["path"], result))


def _bad_rows(path: str, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for line, reason in result["bad"]:
        yield {"file": path, "line": line, "reason": reason}


def _refuse_bad_share(source: dict[str, Any], limit: float, listed: Path) -> None:
    if source["bad_rows"] > limit * source["rows"]:
        first = source["first_bad"]
        raise DataError(
            f"{source['path']}: at most {limit:.2%} of the rows may be unreadable (prepare.max_bad_share), found "
            f"{source['bad_rows']} of {source['rows']}, first {first['file']}:{first['line']}: {first['reason']}. "
            f"{listed} lists the first {LISTED:,} of each file. Mend the data or raise the limit, and run again: "
            "finished files are kept."
        )
