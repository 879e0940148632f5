"""Results of cells made up for the tests of table, plot and tokens-to-reach."""

from typing import Any

from benchmarks.arena.results import FORMAT


def made_up_result(
    name: str,
    kls: list[float],
    *,
    tokens: tuple[int, ...] = (0, 1_000, 2_000, 4_000, 8_000),
    cloze: float | None = None,
) -> dict[str, Any]:
    """Return the JSON of a cell whose held-out KL falls as told; the other measures follow from it."""
    teacher, width, method, budget, seed = name.split("/")
    points = []
    for count, kl in zip(tokens, kls, strict=True):
        measures = {
            "kl": kl,
            "cross_entropy": 3.0 + kl,
            "teacher_cross_entropy": 3.0,
            "top1_agreement": 0.5,
            "top5_agreement": 0.75,
            "bits_per_byte": 1.0 + kl,
            "teacher_bits_per_byte": 1.0,
        }
        point: dict[str, Any] = {"step": count // 100, "tokens": count, "seconds": 10.0 + count / 100}
        point |= {"development": {**measures, "kl": kl / 2}, "held_out": measures, "effective_rank": [10.0, 30.0]}
        if count in (0, tokens[-1]) and cloze is not None:
            point["cloze"] = {"average": {"value": cloze, "standard_error": 0.01}, "tasks": {}}
        points.append(point)
    points[-1]["fresh"] = {**points[-1]["held_out"], "kl": 2 * kls[-1]}
    return {
        "format": FORMAT,
        "cell": name,
        "teacher": teacher,
        "width": width,
        "method": method.partition("@")[0],
        "tokens": budget,
        "seed": int(seed.removeprefix("seed")),
        "hidden_size": {"teacher": 576, "student": 288},
        "calibration_tokens": 65_536,
        "points": points,
        "recipe": {"train": {"learning_rate": 1e-3}},
    }
