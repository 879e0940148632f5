"""Deduplication and decontamination of `lrc prepare`, on datatrove's own blocks.

Before tokenising, all files are signed and compared; the tokenising task then leaves out what was found. The documents
that are signed are those that the recipe's filters leave; MinHash signs what exact deduplication has left. Of each set
of duplicates the earliest stays, by file and place in it: a source's token budget cuts its end off, so the copy that
stays is cut off only where all copies of its source are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.dedup.exact_dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
)
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import ngrams, simplify_text
from datatrove.utils.word_tokenizers import WordTokenizer

from lrc.data.benchmark_rows import benchmark_texts, index_path
from lrc.data.documents import Tally
from lrc.data.near_clusters import KeepEarliest
from lrc.data.prepare_task import PrepareTask, draft_path
from lrc.data.source_files import on_this_machine
from lrc.data.whole_file import write_if_changed
from lrc.data_config import PrepareConfig

EXACT = "the same text as another document"
NEAR = "nearly the same text as another document"
CONTAMINATED = "words of a benchmark"
FOLDER = "dedupe"
TOP_PRIORITY = 65_535
"""Of the first file; the highest priority stays, and one less a file ends at 1, which all files behind share."""


class SpacedWords(WordTokenizer):  # type: ignore[misc]  # datatrove has no types
    """Words between spaces; datatrove's own tokenizers need spaCy, and it has lower-cased and stripped the text."""

    def word_tokenize(self, text: str) -> list[str]:
        """Split at white space."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """Not needed here."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Not needed here."""
        raise NotImplementedError


class Documents:
    """First step of a signing pipeline: the documents of one input file."""

    def __init__(self, task: PrepareTask) -> None:
        self.task = task

    def __call__(self, data: Any, rank: int, world_size: int) -> Iterator[Document]:
        """Read file `rank`."""
        draft = draft_path(Path(self.task.folder), rank)
        with on_this_machine(self.task.files[rank].path, draft) as local:
            yield from as_documents(self.task.texts(rank, local, Tally()), rank)


def dedupe_pipelines(task: PrepareTask) -> list[tuple[str, list[Any], int]]:
    """List the stages that find duplicates: name, pipeline, tasks."""
    settings, num_files = task.settings, len(task.files)
    exact, near = _folder(task.folder, "exact"), _folder(task.folder, "minhash")
    found: list[tuple[str, list[Any], int]] = []
    if settings.exact_dedupe:
        sign = ExactDedupSignature(f"{exact}/signatures", config=_exact_config())
        find = ExactFindDedups(f"{exact}/signatures", f"{exact}/duplicates", config=_exact_config())
        found += [("exact-sign", [Documents(task), sign], num_files), ("exact-find", [find], 1)]
    if settings.minhash_dedupe:
        config = _minhash_config(settings)
        before = [ExactDedupFilter(f"{exact}/duplicates", config=_exact_config())] if settings.exact_dedupe else []
        sign = MinhashDedupSignature(f"{near}/signatures", config=config, language=SpacedWords())
        buckets = MinhashDedupBuckets(f"{near}/signatures", f"{near}/buckets", config=config)
        cluster = KeepEarliest(f"{near}/buckets", f"{near}/duplicates")
        found += [
            ("minhash-sign", [Documents(task), *before, sign], num_files),
            ("minhash-buckets", [buckets], config.num_buckets),
            ("minhash-cluster", [cluster], 1),
        ]
    return found


def drop_found(texts: Iterator[str], task: PrepareTask, rank: int, tally: Tally) -> Iterator[str]:
    """Leave out the documents of file `rank` that are duplicates or hold a benchmark's words, and tally why."""
    documents = as_documents(texts, rank)
    for reason, block in _drop_blocks(task):
        documents = _tallied(documents, block, reason, rank, len(task.files), tally)
    return (document.text for document in documents)


def as_documents(texts: Iterator[str], rank: int) -> Iterator[Document]:
    """Wrap the texts of file `rank` as datatrove takes them."""
    for number, text in enumerate(texts):
        yield Document(text=text, id=str(number), metadata={"file": rank})


def write_benchmark_index(settings: PrepareConfig, folder: Path) -> None:
    """Write the n-grams of the benchmarks' texts as `NGramsDecontFilter` reads them.

    datatrove's own indexer needs lighteval and downloads the tasks that it knows; here the rows are files.
    """
    index, config = index_path(folder), _ngrams_config(settings)
    index.parent.mkdir(parents=True, exist_ok=True)
    block = NGramsDecontFilter(str(index.parent), config=config, language=SpacedWords())
    hashes = {
        block.hash_func(" ".join(words))
        for text in benchmark_texts(settings.decontaminate)
        for words in ngrams(block.tokenizer.word_tokenize(simplify_text(text, config.norm_config)), config.n_grams)
    }
    write_if_changed(index, np.asarray(sorted(hashes), dtype=config.hash_config.np_descr).tobytes())


def _drop_blocks(task: PrepareTask) -> list[tuple[str, Any]]:
    settings, folder = task.settings, task.folder
    blocks: list[tuple[str, Any]] = []
    if settings.exact_dedupe:
        found = _folder(folder, "exact/duplicates")
        blocks.append((EXACT, ExactDedupFilter(str(found), config=_exact_config())))
    if settings.minhash_dedupe:
        blocks.append((NEAR, MinhashDedupFilter(str(_folder(folder, "minhash/duplicates")))))
    if settings.decontaminate:
        index, config = index_path(Path(folder)).parent, _ngrams_config(settings)
        blocks.append((CONTAMINATED, NGramsDecontFilter(str(index), config=config, language=SpacedWords())))
    return blocks


def _tallied(
    documents: Iterator[Document], block: Any, reason: str, rank: int, world_size: int, tally: Tally
) -> Iterator[Document]:
    """Run a datatrove filter, and count what it takes in and does not hand on."""
    inside = 0

    def counted() -> Iterator[Document]:
        nonlocal inside
        for document in documents:
            inside += 1
            yield document

    for document in block.run(counted(), rank, world_size):
        if inside > 1:
            tally.rejected[reason] += inside - 1
        inside = 0
        yield document
    if inside:
        tally.rejected[reason] += inside


def _content(document: Document) -> str:
    return str(document.text)


def _priority(document: Document) -> int:
    return max(1, TOP_PRIORITY - int(document.metadata["file"]))


def _exact_config() -> ExactDedupConfig:
    return ExactDedupConfig(content_getter=_content, document_priority=_priority, hash_config=_hash_config())


def _minhash_config(settings: PrepareConfig) -> MinhashConfig:
    return MinhashConfig(seed=settings.seed + 1, hash_config=_hash_config())  # datatrove's default seed is 1


def _ngrams_config(settings: PrepareConfig) -> NGramsDecontConfig:
    return NGramsDecontConfig(n_grams=settings.decontaminate_words, hash_config=_hash_config())


def _hash_config() -> HashConfig:
    """64 bits of SHA-1: datatrove 0.10 hands text to xxhash, which xxhash 4 refuses."""
    return HashConfig(precision=64, hash_fc="sha1")


def _folder(root: str, name: str) -> Path:
    folder = Path(root) / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
