r"""Fine-tuning with the teacher's KL against without: held-out chat loss, KL to the teacher, instruction following.

    python benchmarks/sft.py --student runs/demo/convert --teacher embedded:smollm2-135m-instruct \
        --train CHATS.jsonl --held-out OTHER_CHATS.jsonl --max-steps 60

Each weight of the KL is one `lrc sft` run on the same chats in the same order; a finished one is kept, a killed one
goes on. The table has the student before, the student after each run, and the teacher; it is printed and written to
OUT/sft.json with every answer of the probe (`lrc/evaluation/instruction_probe.py`).
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from lrc.config import Recipe, recipe_from_dict
from lrc.evaluation.chat_agreement import measure_chats
from lrc.evaluation.instruction_probe import ProbeAnswer, probe_instructions
from lrc.models.compute import choose_device, choose_dtype
from lrc.models.folder import resolve_folder
from lrc.models.teacher import load_model
from lrc.sft.samples import held_out_chats
from lrc.verbs.progress import progress_lines
from lrc.verbs.sft import sft
from lrc.verbs.sft_inputs import chat_encoder
from lrc.verbs.sources import locate_teacher


def cell_recipe(arguments: argparse.Namespace, weight: float) -> Recipe:
    """The recipe of one run; only the KL's weight differs between two."""
    settings = {
        "model": arguments.student,
        "data": arguments.train,
        "held_out": arguments.held_out,
        "held_out_chats": arguments.held_out_chats,
        "teacher_kl": weight,
        "sequence_length": arguments.sequence_length,
        "max_bad_share": 0.01,
        "packing": True,
        "max_steps": arguments.max_steps,
        "batch_size": arguments.batch_size,
        "gradient_accumulation_steps": 1,
        "learning_rate": arguments.learning_rate,
        "log_steps": 5,
        "save_steps": 20,
    }
    values = {
        "run": str(arguments.out / f"teacher_kl_{weight:g}"),
        "teacher": arguments.teacher,
        "student": {"hidden_size": 1},
        "data": {"train": "none"},
        "train": {"max_steps": 1},
        "sft": settings,
    }
    return recipe_from_dict(values, origin="benchmarks/sft.py")


def run_cell(recipe: Recipe) -> Path:
    folder = Path(recipe.run) / "sft"
    if (folder / "sft.json").is_file():
        return folder
    begun = any((Path(recipe.run) / ".sft").glob("checkpoint-*"))
    return sft(recipe, resume="auto" if begun else None)


def measured(name: str, folder: Path, teacher: Any, recipe: Recipe, new_tokens: int) -> dict[str, Any]:
    """One row of the table."""
    device = choose_device("auto")
    model = load_model(str(folder), dtype=choose_dtype("auto", device), device=device)
    tokenizer, encoder = chat_encoder(folder)
    with progress_lines(f"{name}: probe", "prompts", lines=6) as progress:
        answers = probe_instructions(model, tokenizer, max_new_tokens=new_tokens, progress=progress)
    chats, _ = held_out_chats(encoder, recipe.sft)
    return {"name": name, **measure_chats(model, teacher, chats), **probe_facts(answers)}


def probe_facts(answers: list[ProbeAnswer]) -> dict[str, Any]:
    share = sum(answer.is_right for answer in answers) / len(answers)
    rules = dict.fromkeys(answer.rule for answer in answers)
    return {
        "followed": share,
        "followed_error": math.sqrt(share * (1 - share) / len(answers)),
        "followed_by_rule": {rule: sum(answer.is_right for answer in answers if answer.rule == rule) for rule in rules},
        "answers": [answer._asdict() for answer in answers],
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | held-out chat CE | KL to the teacher | top-1 agreement | instructions followed |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | {row['cross_entropy']:.3f} | {row['kl']:.3f} | {row['top1_agreement']:.1%} "
            f"| {row['followed']:.1%} ± {row['followed_error']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="folder of the student")
    parser.add_argument("--teacher", required=True, help="its teacher")
    parser.add_argument("--train", required=True, help="chats")
    parser.add_argument("--held-out", required=True, help="other chats")
    parser.add_argument("--held-out-chats", type=int, default=100)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0], help="weights of the KL, one run each")
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4, help="packed rows of a step")
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--new-tokens", type=int, default=96, help="longest answer of the probe")
    parser.add_argument("--out", type=Path, default=Path("runs/sft"))
    arguments = parser.parse_args()

    recipes = {weight: cell_recipe(arguments, weight) for weight in arguments.weights}
    folders = {f"student, teacher_kl {weight:g}": run_cell(recipe) for weight, recipe in recipes.items()}
    teacher_folder = resolve_folder(locate_teacher(arguments.teacher))
    device = choose_device("auto")
    teacher = load_model(str(teacher_folder), dtype=choose_dtype("auto", device), device=device)
    models = {"student before": Path(arguments.student), **folders, "teacher": teacher_folder}
    recipe = next(iter(recipes.values()))
    rows = [measured(name, folder, teacher, recipe, arguments.new_tokens) for name, folder in models.items()]
    print(table(rows))
    facts = {"settings": {key: str(value) for key, value in vars(arguments).items()}, "rows": rows}
    (arguments.out / "sft.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
