"""The recipe's sections about data: what training reads, and what `lrc prepare` makes of raw sources."""

import re
from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING

FILTER = re.compile(r"\s*([\w.]+)\s*(>=|<=|==|!=|>|<)\s*(\S.*?)\s*")
"""`key >= value`; `a.b` is the key b inside a."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the run reads: token shards, or JSON lines with `input_ids`, or with `text` for the teacher's tokenizer."""

    train: str = MISSING
    """Folder of token shards, or file, folder or glob of training rows."""
    held_out: str | None = None
    """File, folder or glob of held-out rows; None: no held-out measures during training."""
    sequence_length: int = 512
    """Positions a training sequence has; longer rows are cut, shorter ones padded."""
    held_out_tokens: int = 8_192
    """Tokens of `held_out` scored at the start and during training."""
    document_masking: bool = True
    """In training, attention stays inside a document and positions restart (published: false)."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of documents for `lrc prepare`."""

    path: str = MISSING
    """File, folder, glob or URL (hf://datasets/OWNER/NAME/GLOB) of .jsonl, .json, .parquet, .gz or .zst."""
    kind: Literal["text", "chat"] = "text"
    """`text`: one field. `chat`: conversations, messages or instruction rows, through the chat template."""
    text_key: str = "text"
    """Field that holds the text."""
    filters: tuple[str, ...] = ()
    """Conditions on other fields that a row must meet, for example `int_score >= 4`."""
    keep: float = 1.0
    """Share of the rows kept, chosen by `prepare.seed`, file and row number."""
    max_tokens: int | None = None
    """Token budget; the document that reaches it is the last. None: no limit."""
    data_class: str = "general"
    """Name of the data class, for the loss per class."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What a task of `lrc prepare` asks of a cluster."""

    partition: str = ""
    """Slurm partition; `prepare.executor=slurm` needs it."""
    hours: int = 24
    """Slurm time limit of a job: a task, or several in turn where a stage has over 1,001."""
    qos: str = "normal"
    """Slurm quality of service."""
    cpus_per_task: int = 1
    """Processors of a task, which uses one."""
    memory_per_cpu_gigabytes: int = 4
    """Memory per processor."""
    environment_command: str | None = None
    """Shell command that makes this installation usable in a job; None: put this Python's folder on the PATH."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """From raw sources to token shards."""

    sources: list[SourceConfig] = field(default_factory=list)  # OmegaConf types the items of lists only
    """Sources in order; the keys of one are listed in docs/formats.md."""
    executor: Literal["local", "slurm", "ray"] = "local"
    """Where tasks run: processes here, Slurm job arrays, a Ray cluster. The result does not depend on it."""
    workers: int | None = None
    """Tasks at once; None: one a core here, no limit on a cluster. The result does not depend on it."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    max_bad_share: float = 0.001
    """Share of a source's rows that may be unreadable."""
    max_document_bytes: int = 5_000_000
    """Longest document, in bytes of UTF-8; a longer one counts as unreadable. Tokenising takes 100 times its size."""
    exact_dedupe: bool = False
    """Of documents with the same text, in any source, keep the earliest, by source, file and row."""
    minhash_dedupe: bool = False
    """Of documents with nearly the same words keep the earliest too (MinHash, 5-grams, 14 x 8 hashes: about 0.72)."""
    decontaminate: tuple[str, ...] = ()
    """Files, folders, globs or URLs of benchmark rows; a document that shares a run of words with one is left out."""
    decontaminate_words: int = 12
    """Length of the run of words."""
    held_out_share: float = 0.0
    """Share of the text sources' documents put aside in `held_out.jsonl`, for `data.held_out`; chosen by text."""
    seed: int = 0
    """Chooses the rows that `keep` keeps, the documents that are put aside, and MinHash's hashes."""


def prepare_problems(settings: PrepareConfig) -> list[str]:
    """Check what the types can't say; returns a line a problem."""
    problems = []
    for number, source in enumerate(settings.sources):
        name = f"prepare.sources[{number}]"
        if not 0 < source.keep <= 1:
            problems.append(f"{name}.keep must lie in 0..1, 0 left out, found {source.keep}")
        if source.max_tokens is not None and source.max_tokens < 1:
            problems.append(f"{name}.max_tokens must be at least 1, found {source.max_tokens}")
        bad = [text for text in source.filters if FILTER.fullmatch(text) is None]
        problems += [f"{name}.filters: a filter must look like key >= value, found {text!r}" for text in bad]
    for name in ("hours", "cpus_per_task", "memory_per_cpu_gigabytes"):
        if getattr(settings.cluster, name) < 1:
            problems.append(f"prepare.cluster.{name} must be at least 1, found {getattr(settings.cluster, name)}")
    if settings.executor == "slurm" and not settings.cluster.partition:
        problems.append("prepare.cluster.partition must be set for prepare.executor=slurm")
    if settings.workers is not None and settings.workers < 1:
        problems.append(f"prepare.workers must be at least 1, found {settings.workers}")
    if not 0 <= settings.held_out_share < 1:
        problems.append(f"prepare.held_out_share must lie in 0..1, 1 left out, found {settings.held_out_share}")
    if settings.held_out_share > 0 and not any(source.kind == "text" for source in settings.sources):
        problems.append("prepare.held_out_share puts documents of text sources aside, but no source is of kind text")
    if not 0 <= settings.max_bad_share <= 1:
        problems.append(f"prepare.max_bad_share must lie in 0..1, found {settings.max_bad_share}")
    for name in ("max_document_bytes", "decontaminate_words"):
        if getattr(settings, name) < 1:
            problems.append(f"prepare.{name} must be at least 1, found {getattr(settings, name)}")
    return problems
