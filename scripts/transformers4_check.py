"""Write students and their logits with one transformers, load them with another; called by transformers4_check.sh.

`--make WORK [STUDENT...]` runs in this package's environment, `WORK` alone in that of transformers 4.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LENGTH = 80
"""Positions: more than the tiny students' context, from which on a dynamic rotary embedding turns otherwise."""
LARGEST_DIFFERENCE = 1e-5
"""Of logits, as a share of the largest of them (at least 1)."""
MANIFEST, LOGITS = "students.json", "logits.safetensors"
CONTROL = "control: rope_theta and rope_scaling taken out"
THETA = 500.0
ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
ROPE_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
OPTIONS = {"gemma2": {"attn_implementation": "eager"}}
"""What transformers 4 needs; docs/serving.md says why."""


def main() -> int:
    """Make students or compare them; returns 0 if all agree and the control does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder of the students and their logits")
    parser.add_argument("students", nargs="*", type=Path, help="with --make: folders to take instead of tiny students")
    parser.add_argument("--make", action="store_true")
    given = parser.parse_args()
    if given.make:
        make(given.work, given.students)
        return 0
    return compare(given.work)


def make(work: Path, students: list[Path]) -> None:
    """Write tiny students, or take given ones, and write what the transformers here compute with them."""
    folders = {str(path): path.resolve() for path in students} or make_tiny_students(work)
    save_file({name: logits_of(folder, {}) for name, folder in folders.items()}, work / LOGITS)
    (work / MANIFEST).write_text(json.dumps({name: str(folder) for name, folder in folders.items()}))


def make_tiny_students(work: Path) -> dict[str, Path]:
    """Write a random student of each model type at half its teacher's width, and of four types with each rope."""
    from lrc.export.plain_folder import write_config
    from lrc.export.serving import TRIED_IN_TRANSFORMERS_4
    from lrc.models.student import is_tied_config, student_config
    from lrc.models.tiny import random_model
    from tests.models.family_configs import FAMILY_CONFIGS

    configs = {name: make_config() for name, make_config in FAMILY_CONFIGS.items()}
    for config in configs.values():
        set_theta(config)
    for family in ROPE_FAMILIES:
        for kind, values in ROPES.items():
            config = FAMILY_CONFIGS[family]()
            config.rope_parameters = {"rope_type": kind, "rope_theta": THETA} | values
            configs[f"{family}, rope {kind}"] = config
    types = {config.model_type for config in configs.values()}
    assert types == set(TRIED_IN_TRANSFORMERS_4), types ^ set(TRIED_IN_TRANSFORMERS_4)
    folders = {}
    for number, (name, config) in enumerate(configs.items()):
        folders[name] = work / f"student-{number:02}"
        student = student_config(config, config.hidden_size // 2, tied=is_tied_config(config))
        random_model(student).save_pretrained(folders[name])
        write_config(student, folders[name])
    folders[CONTROL] = work / "control"
    folders[CONTROL].mkdir()
    for path in folders["llama, rope default"].iterdir():
        (folders[CONTROL] / path.name).write_bytes(path.read_bytes())
    forget_older_keys(folders[CONTROL] / "config.json")
    return folders


def set_theta(config: Any) -> None:
    """Give a config's rotary embedding a base that transformers 4 does not take by itself, Gemma 3's layers two."""
    rope = config.rope_parameters
    parts = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    for place, part in enumerate(parts):
        part["rope_theta"] = THETA * (1 + place if config.model_type == "gemma3_text" else 1)


def forget_older_keys(path: Path) -> None:
    """Take out of a config.json what only transformers 4 reads."""
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: values[name] for name in values.keys() - {"rope_theta", "rope_scaling"}}))


@torch.no_grad()
def logits_of(folder: Path, options: dict[str, Any]) -> torch.Tensor:
    """Return the logits at random ids, `[2, LENGTH, vocabulary]`, in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (2, LENGTH), generator=generator)
    return model(input_ids=ids, use_cache=False).logits.float()


def compare(work: Path) -> int:
    """Print a line a student; returns 0 if all agree but the control."""
    import transformers

    expected = load_file(work / LOGITS)
    wrong, largest, count = [], 0.0, 0
    for name, folder in json.loads((work / MANIFEST).read_text()).items():
        kind = json.loads((Path(folder) / "config.json").read_text())["model_type"]
        difference = difference_of(Path(folder), expected[name], OPTIONS.get(kind, {}))
        is_equal = difference <= LARGEST_DIFFERENCE
        print(f"{name:<50} {difference:.1e} {'equal' if is_equal else 'DIFFERENT'}")
        if is_equal is (name == CONTROL):
            wrong.append(name)
        if name != CONTROL:
            largest, count = max(largest, difference), count + 1
    version = transformers.__version__
    print(f"transformers {version}: {count} students, largest difference {largest:.1e}; wrong: {wrong}")
    return 1 if wrong else 0


def difference_of(folder: Path, expected: torch.Tensor, options: dict[str, Any]) -> float:
    """Return the largest difference of the logits as a share of their largest; infinity where it can't be loaded."""
    try:
        found = logits_of(folder, options)
    except Exception as error:  # noqa: BLE001  a class that is missing or changed fails in its own way
        print(f"{folder}: {type(error).__name__}: {error}"[:500])
        return float("inf")
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


if __name__ == "__main__":
    sys.exit(main())
