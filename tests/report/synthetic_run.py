"""Builds a run folder with numbers of a realistic size, for the tests of the report.

The teacher is as large as a 135 M-parameter model of 30 layers, the student half as wide.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lrc.config import recipe_from_dict, recipe_to_dict

NUM_LAYERS = 30
TOKENS_PER_STEP = 2048
ALL_TERMS = ("attn-q", "attn-k", "attn-v", "attn-out", "mlp-gate", "mlp-up", "mlp-out")
IO_TERMS = ("attn-in", "attn-out", "mlp-in", "mlp-out")
SAMPLES = (
    (
        "The capital of France is",
        " Paris. It is the largest city in France and one of the most visited cities in the world.",
        " Paris. The city is the capital of the country and is the largest city in the region.",
    ),
    (
        "def add(a, b):\n    return",
        " a + b\n\nprint(add(2, 3))  # <b>5</b>",
        " a + b\n\n<script>alert('a & b')</script>",
    ),
    (
        "In the early morning, the village",
        " was quiet, and the only sound was the river that ran behind the old mill.",
        " was a small place, and the people were in the fields, where the river ran to the sea.",
    ),
)
"""Prompt, the teacher's continuation, the student's."""
VERSIONS = {"lrc": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0"}


def write_run(
    run: Path,
    *,
    num_steps: int = 120,
    log_steps: int = 1,
    terms: tuple[str, ...] = ALL_TERMS,
    num_layers: int = NUM_LAYERS,
    with_teacher: bool = True,
) -> Path:
    """Write every file of a finished run and return its folder."""
    noise = random.Random(0)
    write_recipe(run)
    write_json(run / "train/start.json", start_values(num_layers, noise))
    lines = metrics_lines(num_steps=num_steps, log_steps=log_steps, terms=terms, num_layers=num_layers, noise=noise)
    write_lines(run / "train/metrics.jsonl", lines)
    write_json(run / "convert/parity.json", parity_values())
    write_json(run / "evaluate/results.json", results_values(num_layers, noise, with_teacher=with_teacher))
    write_json(run / "sft/sft.json", sft_values())
    return run


def write_json(path: Path, values: Any) -> None:
    """Write one JSON file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a JSON lines file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_recipe(run: Path) -> None:
    """Write the resolved recipe."""
    recipe = recipe_from_dict(
        {
            "run": "runs/demo",
            "teacher": "embedded:smollm2-135m-instruct",
            "student": {"hidden_size": 288},
            "data": {"train": "train.jsonl", "held_out": "held_out.jsonl"},
            "train": {"max_steps": 120},
        },
        origin="the synthetic run",
    )
    (run / "train").mkdir(parents=True, exist_ok=True)
    text = OmegaConf.to_yaml(OmegaConf.create(recipe_to_dict(recipe)))
    (run / "train/recipe.yaml").write_text(text, encoding="utf-8")


def held_out_values(progress: float, num_layers: int = NUM_LAYERS) -> dict[str, Any]:
    """Return held-out measures after this share (0 to 1) of the training."""
    fall = math.exp(-3 * progress)
    return {
        "kl": 1.052 + 0.4441 * fall,
        "cross_entropy": 4.6113 + 0.4209 * fall,
        "teacher_cross_entropy": 3.7907,
        "top1_agreement": 0.5137 - 0.0861 * fall,
        "positions": 8176,
        "effective_rank": rank_values(num_layers, 100.0 + 12 * progress),
        "teacher_effective_rank": rank_values(num_layers, 140.0),
        "effective_rank_share": (100.0 + 12 * progress) / 140,
        "has_collapsed": False,
    }


def start_values(num_layers: int, noise: random.Random) -> dict[str, Any]:
    """Return start.json."""
    errors = [0.062 + 0.018 * layer / num_layers + noise.uniform(-0.004, 0.004) for layer in range(num_layers)]
    return {
        "method": "calibrated",
        "calibration_tokens": 65536,
        "seconds": 141.7,
        "layer_errors": errors,
        "held_out": held_out_values(0, num_layers),
        "effective_rank": [rank * 0.93 for rank in rank_values(num_layers, 118.0)],
        "versions": VERSIONS,
    }


def rank_values(num_layers: int, peak: float) -> list[float]:
    """Return an effective rank a layer that rises, then falls towards the head."""
    return [peak * (0.45 + 0.55 * math.sin(math.pi * (layer + 4) / (num_layers + 8))) for layer in range(num_layers)]


def train_line(step: int, progress: float, terms: tuple[str, ...], num_layers: int, noise: random.Random) -> Any:
    """Return one training line of metrics.jsonl."""
    fall = math.exp(-3 * progress)
    clone = {}
    for place, term in enumerate(terms):
        level = (0.02 + 0.015 * place) * (0.7 + 0.5 * fall)
        clone[term] = [
            level * (1 + 4 * (layer / num_layers) ** 2) * noise.uniform(0.9, 1.1) for layer in range(num_layers)
        ]
    values = [value for term in clone.values() for value in term]
    kl_loss = 1.01 + 0.46 * fall + noise.gauss(0, 0.04)
    clone_loss = sum(values) / max(len(values), 1)
    return {
        "kind": "train",
        "step": step,
        "tokens": step * TOKENS_PER_STEP,
        "loss": kl_loss + 0.2 * clone_loss,
        "lm_loss": 3.95 + 0.5 * fall + noise.gauss(0, 0.08),
        "kl_loss": kl_loss,
        "clone_loss": clone_loss,
        "clone": clone,
        "gradient_norm": 0.8 + noise.random(),
        "learning_rate": 1e-4 * (1 - progress),
        "tokens_per_second": 690.0 + noise.uniform(-15, 15),
        "seconds": 150.0 + 2.97 * step,
    }


def metrics_lines(
    *, num_steps: int, log_steps: int, terms: tuple[str, ...], num_layers: int, noise: random.Random
) -> list[dict[str, Any]]:
    """Return metrics.jsonl: a training line each `log_steps`, a held-out line at each quarter."""
    start = {"kind": "held_out", "step": 0, "tokens": 0, "seconds": 150.0}
    lines: list[dict[str, Any]] = [{**start, **held_out_values(0, num_layers)}]
    quarters = {round(num_steps * quarter / 4) for quarter in (1, 2, 3, 4)} - {0}
    for step in range(1, num_steps + 1):
        progress = step / num_steps
        if step % log_steps == 0:
            lines.append(train_line(step, progress, terms, num_layers, noise))
        if step in quarters:
            place = {"kind": "held_out", "step": step, "tokens": step * TOKENS_PER_STEP, "seconds": 150.0 + 3 * step}
            lines.append({**place, **held_out_values(progress, num_layers)})
    return lines


def parity_values(*, passed: bool = True) -> dict[str, Any]:
    """Return parity.json."""
    return {
        "passed": passed,
        "in_memory": {"max_abs_difference": 0.0781, "relative_difference": 0.00311},
        "after_reload": {"max_abs_difference": 0.0781, "relative_difference": 0.00311},
        "tolerance": 0.02,
        "dtype": "bfloat16",
        "positions": 256,
        "logit_scale": 5.42,
    }


def results_values(num_layers: int, noise: random.Random, *, with_teacher: bool = True) -> dict[str, Any]:
    """Return results.json; without a teacher what needs one is null."""
    teacher = {
        "name": "/home/someone/.cache/lrc/smollm2-135m-instruct",
        "cross_entropy": 3.7911,
        "perplexity": math.exp(3.7911),
        "bits_per_byte": 1.2693,
        "parameters": 134_515_008,
        "file_size_bytes": 269_060_552,
        "prefill_tokens_per_second": 1214.6,
        "decode_tokens_per_second": 21.37,
    }
    student = {
        "name": "runs/demo/convert",
        "cross_entropy": 4.6342,
        "perplexity": math.exp(4.6342),
        "bits_per_byte": 1.5516,
        "parameters": 67_265_568,
        "file_size_bytes": 134_563_112,
        "prefill_tokens_per_second": 2216.4,
        "decode_tokens_per_second": 38.92,
        "kl_to_teacher": 1.0741 if with_teacher else None,
        "top1_agreement": 0.5094 if with_teacher else None,
        "top5_agreement": 0.6218 if with_teacher else None,
    }
    return {
        "held_out": {"source": "held_out.jsonl", "positions": 16352, "bytes": 70472, "sequence_length": 512},
        "teacher": teacher if with_teacher else None,
        "student": student,
        "effective_rank": {
            "teacher": rank_values(num_layers, 171.0) if with_teacher else None,
            "student": [rank + noise.uniform(-2, 2) for rank in rank_values(num_layers, 123.0)],
        },
        "hidden_size": {"teacher": 576 if with_teacher else None, "student": 288},
        "samples": [
            {"prompt": prompt, "teacher": teacher_text if with_teacher else None, "student": student_text}
            for prompt, teacher_text, student_text in SAMPLES
        ],
        "versions": VERSIONS,
        "machine": {"device": "cpu", "threads": 2, "dtype": "float32"},
        "tasks": task_values(with_teacher=with_teacher),
    }


def task_values(*, with_teacher: bool = True) -> dict[str, Any]:
    """Return the section `tasks` of results.json for two tasks."""

    def row(teacher: float, student: float, error: float, paired: float) -> dict[str, Any]:
        difference = student - teacher
        ends = [difference - 1.96 * paired, difference + 1.96 * paired]
        return {
            "teacher": {"value": teacher, "standard_error": error} if with_teacher else None,
            "student": {"value": student, "standard_error": error},
            "difference": {"value": difference, "standard_error": paired, "interval": ends} if with_teacher else None,
        }

    return {
        "models": {"student": "runs/demo/convert"} | ({"teacher": "owner/teacher"} if with_teacher else {}),
        "data": "hub",
        "limit": None,
        "batch_size": 1,
        "dtype": {"student": "float32"},
        "scores": [
            {
                "task": "arc_easy",
                "metric": "acc,none",
                "items": 2376,
                "num_fewshot": 0,
                **row(0.635, 0.5125, 0.01, 0.009),
            },
            {
                "task": "logiqa",
                "metric": "acc_norm,none",
                "items": 651,
                "num_fewshot": 0,
                **row(0.28, 0.27, 0.02, 0.015),
            },
        ],
        "average": row(0.4575, 0.39125, 0.011, 0.0087),
        "metrics": {"student": {"arc_easy": {"acc,none": 0.5125}}},
        "command": "lm_eval --model hf --model_args pretrained=runs/demo/convert --tasks arc_easy,logiqa",
    }


def sft_values() -> dict[str, Any]:
    """Return the sft.json of a student that was fine-tuned beside its teacher."""
    counts = {"rows": 1204, "bad_rows": 2, "listed_bad_rows": ["/home/someone/chats.jsonl:7: a system message alone"]}
    counts |= {"sequences": 1200, "truncated": 31, "dropped": 1, "answerless": 1, "longest": 5211, "unended_answers": 0}
    counts |= {"tokens": 1_234_567, "answer_tokens": 654_321}
    before = {"cross_entropy": 3.1234, "kl": 0.9876, "positions": 2048}
    return {
        "steps": 50,
        "rows": 1200,
        "processes": 1,
        "loss": 2.4,
        "seconds": 812.5,
        "student": "runs/demo/convert",
        "student_hash": "5f3a",
        "teacher": "embedded:smollm2-135m-instruct",
        "teacher_kl": 0.5,
        "data": "hf://datasets/owner/chats/data/train_sft-*.parquet",
        "chats": counts,
        "held_out": {
            "source": "/home/someone/held_out.jsonl",
            "chats": {**counts, "rows": 64, "sequences": 64},
            "before": before,
            "after": {**before, "cross_entropy": 2.3456, "kl": 0.6543},
        },
        "versions": VERSIONS,
        "machine": {"device": "cpu", "dtype": "float32", "threads": 2},
    }


def manifest_values() -> dict[str, Any]:
    """Return the manifest of two prepared sources."""
    text = {"path": "hf://datasets/owner/corpus/data/*.parquet", "kind": "text", "rows": 1000, "kept": 640}
    chat = {"path": "/home/someone/chats.jsonl", "kind": "chat", "rows": 50, "kept": 49, "tokens": 9100}
    return {"format": "lrc-shards/1", "tokens": 821_445, "sources": [{**text, "tokens": 812_345}, chat]}
