"""Do jobs on the emulated GPU, or with `cpu` on the CPU: `python gpu_runs.py JOBS.json cuda|cpu`, a script for tests.

A job is `{"name", "root": folder, "changes": of `tiny_recipe`, "scores": bool}`. What each gave goes to
`RESULTS-DEVICE.json` beside the jobs: `{"losses", "held_out", "waits_forward", "waits_update"}`, with `"scores"` in the
job `{"machine", "scored"}` too, or `{"error"}`. The job `sft` fine-tunes on chats: `{"machine", "loss", "chats"}`.
Waits are the host's for the device: a number each forward pass and one each optimiser step.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

DEVICE = sys.argv[2]
if DEVICE == "cuda":
    from tests.emulated_gpu.emulate import install

    install()

from lrc.config import EvaluateConfig, load_recipe  # noqa: E402
from lrc.models.pair_model import PairModel  # noqa: E402
from lrc.training.engine import FullEngine  # noqa: E402
from lrc.verbs.convert import convert  # noqa: E402
from lrc.verbs.evaluate import evaluate  # noqa: E402
from lrc.verbs.sft import sft  # noqa: E402
from lrc.verbs.train import train  # noqa: E402
from tests.emulated_gpu.emulate import host_waits  # noqa: E402
from tests.sft.tiny_chats import sft_root  # noqa: E402
from tests.tiny import tiny_recipe  # noqa: E402

WAITS: dict[str, list[int]] = {"forward": [], "update": []}


def counted(kind: str, action: Any) -> Any:
    """Wrap a method so that its waits are noted; nothing is counted on the CPU."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        before = host_waits() if DEVICE == "cuda" else 0
        result = action(*arguments, **keywords)
        WAITS[kind].append(host_waits() - before if DEVICE == "cuda" else 0)
        return result

    return run


def result_of(job: dict[str, Any]) -> dict[str, Any]:
    """Train, and where the job says so convert and score."""
    for noted in WAITS.values():
        noted.clear()
    root = Path(job["root"])
    run = root / DEVICE / job["name"]
    recipe = tiny_recipe(root, run=str(run), train__device=DEVICE, train__log_steps=1, **job["changes"])
    last = train(recipe)
    lines = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    result: dict[str, Any] = {
        "losses": [line["loss"] for line in lines if line["kind"] == "train"],
        "held_out": [line["kl"] for line in lines if line["kind"] == "held_out"],
        **{f"waits_{kind}": list(noted) for kind, noted in WAITS.items()},
    }
    if job.get("scores"):
        student = convert(last, run / "convert")
        settings = EvaluateConfig(tokens=64, sequence_length=16, samples=1, sample_tokens=4)
        scored = evaluate(
            student, out=run / "evaluate", held_out=recipe.data.held_out, teacher=recipe.teacher, settings=settings
        )
        written = json.loads(scored.read_text())
        result |= {"machine": written["machine"]["device"], "scored": written["student"]["cross_entropy"]}
    return result


def fine_tuned(folder: Path) -> dict[str, Any]:
    """Fine-tune the tiny student on chats, with its teacher as a target."""
    folder.mkdir(parents=True)
    root = sft_root(folder)
    recipe = load_recipe(root / "recipe.yaml", (f"sft.device={DEVICE}", "sft.teacher_kl=0.5"))
    facts = json.loads((sft(recipe) / "sft.json").read_text())
    return {"machine": facts["machine"]["device"], "loss": facts["loss"], "chats": facts["held_out"]["after"]}


def main(jobs: Path) -> None:
    PairModel.forward = counted("forward", PairModel.forward)  # type: ignore[method-assign]
    FullEngine.update = counted("update", FullEngine.update)  # type: ignore[method-assign]
    results: dict[str, Any] = {}
    for job in json.loads(jobs.read_text()):
        try:
            is_chat = job["name"] == "sft"
            results[job["name"]] = fine_tuned(Path(job["root"]) / DEVICE / "sft") if is_chat else result_of(job)
        except Exception as error:  # noqa: BLE001  # the test says which job it was
            traceback.print_exc()
            results[job["name"]] = {"error": f"{type(error).__name__}: {error}"}
    jobs.with_name(f"RESULTS-{DEVICE}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
