"""Throughput of `lrc prepare` against the tokenizer's own batch encoding of the same text on the same cores.

    python benchmarks/prepare.py --teacher TEACHER --text FILE... [--megabytes 100] [--workers 2]

The text files are repeated, twenty lines a document, until they hold `--megabytes`. Prints a table and writes
`runs/benchmarks/prepare.json`. `ratio` compares the clock and means something on an idle machine only; `cpu_ratio`
compares processor seconds, all processes of prepare against all threads of the tokenizer, and holds beside other work.
The loader is timed on the shards that come out: sequence 2048, batch 8.
"""

import argparse
import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path

# nothing heavy here: each worker imports the script that started it anew

STEP_SECONDS = 0.05
"""The training step that the loader must keep up with."""
BATCH = 1000
FILES = 8
OUT = Path("runs/benchmarks")


def write_input(folder: Path, sources: list[Path], num_bytes: int) -> list[str]:
    """Write the text as JSON lines in equal files; returns the documents."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paragraphs = [line for path in sources for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    documents, size = [], 0
    for number, start in enumerate(itertools.cycle(range(0, len(paragraphs), 20))):
        if size >= num_bytes:
            break
        documents.append(f"{number}\n" + "\n".join(paragraphs[start : start + 20]))
        size += len(documents[-1].encode())
    share = -(-len(documents) // FILES)
    for number in range(FILES):
        rows = documents[number * share : (number + 1) * share]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return documents


class Watch:
    """Processor seconds of this process and all below it, and the peak memory of a worker, looked at every 50 ms."""

    def __init__(self) -> None:
        import psutil

        self.own = psutil.Process()
        self.began = time.perf_counter()
        self.seconds: dict[int, float] = {}
        self.peak_bytes = 0
        self._before = sum(self.own.cpu_times()[:2])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        import psutil

        while not self._stop.wait(0.05):
            for process in self.own.children(recursive=True):
                try:
                    self.seconds[process.pid] = sum(process.cpu_times()[:2])
                    if "forkserver" in " ".join(process.cmdline()):  # others are forks of this one, documents and all
                        self.peak_bytes = max(self.peak_bytes, process.memory_info().rss)
                except psutil.Error:
                    continue  # it has just ended

    def stop(self) -> tuple[float, float]:
        """Return seconds by the clock and of processors."""
        self._stop.set()
        self._thread.join()
        own = sum(self.own.cpu_times()[:2]) - self._before
        return time.perf_counter() - self.began, own + sum(self.seconds.values())


def encode_seconds(teacher: str, documents: list[str], workers: int) -> tuple[float, float]:
    """Return the seconds, by the clock and of processors, of the tokenizer's own threads, `workers` of them."""
    from transformers import AutoTokenizer

    os.environ["RAYON_NUM_THREADS"] = str(workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    encode = AutoTokenizer.from_pretrained(teacher).backend_tokenizer.encode_batch_fast
    watch, tokens = Watch(), 0
    for start in range(0, len(documents), BATCH):
        tokens += sum(len(found.ids) for found in encode(documents[start : start + BATCH], add_special_tokens=False))
    return watch.stop()


def loader_share(folder: Path, vocab_size: int, steps: int = 200) -> float:
    """Return the loader's time a step as a share of a 50 ms step."""
    from lrc.data.blocks import BatchPlan, open_blocks, step_batches

    blocks = open_blocks(str(folder), None, sequence_length=2048, vocab_size=vocab_size)
    plan = BatchPlan(seed=0, batch_size=8, accumulation=1)
    began = time.perf_counter()
    for step in range(steps):
        step_batches(blocks, plan, step, document_masking=True)
    return (time.perf_counter() - began) / steps / STEP_SECONDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--text", nargs="+", type=Path, required=True)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    flags = parser.parse_args()
    from transformers import AutoTokenizer

    from lrc.config import Recipe
    from lrc.data_config import PrepareConfig, SourceConfig
    from lrc.verbs.prepare import prepare

    raw, run = OUT / "prepare_raw", OUT / "prepare_run"
    documents = write_input(raw, flags.text, flags.megabytes * 10**6)
    source = SourceConfig(path=str(raw))
    recipe = Recipe(run=str(run), teacher=flags.teacher, prepare=PrepareConfig(sources=[source], workers=flags.workers))
    shutil.rmtree(run, ignore_errors=True)
    watch = Watch()
    folder = prepare(recipe)
    seconds, cpu_seconds = watch.stop()
    tokens = json.loads((folder / "manifest.json").read_text())["tokens"]
    own_seconds, own_cpu_seconds = encode_seconds(flags.teacher, documents, flags.workers)
    facts = {
        "megabytes": flags.megabytes,
        "workers": flags.workers,
        "tokens": tokens,
        "prepare_tokens_per_second": tokens / seconds,
        "tokenizer_tokens_per_second": tokens / own_seconds,
        "ratio": own_seconds / seconds,
        "prepare_cpu_seconds": cpu_seconds,
        "tokenizer_cpu_seconds": own_cpu_seconds,
        "cpu_ratio": own_cpu_seconds / cpu_seconds,
        "peak_worker_mebibytes": watch.peak_bytes / 2**20,
        "loader_share_of_50_ms_step": loader_share(folder, len(AutoTokenizer.from_pretrained(flags.teacher))),
    }
    for name, value in facts.items():
        print(f"{name:32} {value:14,.3f}" if isinstance(value, float) else f"{name:32} {value:14,}")
    (OUT / "prepare.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
