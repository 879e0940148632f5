"""The command line of `benchmarks/step.py`."""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.one_shape import Settings, measure_shape, shape_table
from benchmarks.speed.parts import parts_table
from benchmarks.speed.shapes import AXES, SHAPES, Shape
from benchmarks.speed.sweep import measure_sweep, sweep_table
from lrc.errors import ConfigError
from lrc.models.compute import choose_device, choose_dtype, dtype_name, keep_freed_memory
from lrc.verbs.exit_code import run_or_exit


def main(description: str | None) -> None:
    """Measure what the command line asks for, print tables, write JSON."""
    arguments = _parse(description)
    run_or_exit(lambda: _measure(arguments))


def _measure(arguments: argparse.Namespace) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    axes = _axes(arguments)
    keep_freed_memory()  # as `lrc train` does; the plain formulation and the floor gain by it too
    device = choose_device(arguments.device)
    settings = Settings(
        dtype=choose_dtype(arguments.dtype, device),
        device=device,
        accumulations=_numbers(arguments.accumulation),
        rounds=arguments.rounds,
        with_plain=not arguments.no_plain,
        optimizer=arguments.optimizer,
        with_compiled=arguments.compile,
        only=arguments.ways,
        traces=arguments.out.parent if arguments.profile else None,
    )
    found: dict[str, Any] = {"machine": machine_facts(settings), "shapes": [], "sweeps": []}
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    for shape in [_find_shape(name, arguments) for name in arguments.shapes.split(",")]:
        for axis in axes:
            sweep = measure_sweep(shape, axis, arguments.points, settings, _report)
            found["sweeps"].append(sweep)
            print(f"\n{sweep_table(sweep)}", flush=True)
        if axes:
            continue
        facts = measure_shape(shape, settings, _report)
        found["shapes"].append(facts)
        print(f"\n{shape_table(facts)}", flush=True)
        if facts["parts"]:
            print(f"\n{parts_table(shape.name, facts['parts'])}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=2) + "\n")


def _parse(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="demo", help=f"comma list of {', '.join(SHAPES)}")
    parser.add_argument("--batch", type=int, help="rows of a micro-batch")
    parser.add_argument("--length", type=int, help="positions of a row")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="torch's threads; its own choice if left out")
    parser.add_argument("--accumulation", default="1", help="comma list of micro-batches a step, e.g. 1,2,4,8")
    parser.add_argument("--rounds", type=int, default=5, help="times are medians over them")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--sweep", help=f"instead of the table: comma list of {', '.join(AXES)}, each doubled")
    parser.add_argument("--points", type=int, default=3, help="points of a sweep: 1, 2, 4, ... times the size")
    parser.add_argument("--profile", action="store_true", help="time by part, and traces beside --out")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain formulation out")
    parser.add_argument("--compile", action="store_true", help="ours with train.compile too")
    parser.add_argument("--ways", default="", metavar="TEXT", help="only ways with TEXT in their title, and the floor")
    parser.add_argument("--out", type=Path, default=Path("runs/step/step.json"))
    return parser.parse_args()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _axes(arguments: argparse.Namespace) -> list[str]:
    """Return what a sweep doubles, nothing where none is asked for.

    Raises:
        ConfigError: There is no such size, or a flag is there that a sweep has no use for.
    """
    if not arguments.sweep:
        return []
    given = {
        "--ways": arguments.ways,
        "--profile": arguments.profile,
        "--compile": arguments.compile,
        "--accumulation": arguments.accumulation != "1",
        "--no-plain": arguments.no_plain,
    }
    if useless := [flag for flag, is_given in given.items() if is_given]:
        raise ConfigError(f"--sweep times one eager step of one micro-batch; leave {', '.join(useless)} out.")
    axes: list[str] = arguments.sweep.split(",")
    if unknown := [axis for axis in axes if axis not in AXES]:
        raise ConfigError(f"A sweep can't double {unknown[0]!r}. It can double {', '.join(AXES)}.")
    if arguments.points < 2:
        raise ConfigError(f"--points must be at least 2, found {arguments.points}.")
    return axes


def _find_shape(name: str, arguments: argparse.Namespace) -> Shape:
    """Return a shape with what the command line changes in it."""
    if name not in SHAPES:
        raise ConfigError(f"There is no shape {name!r}. There are {', '.join(SHAPES)}.")
    shape = SHAPES[name]
    given = {name: getattr(arguments, name) for name in ("batch", "length", "layers", "vocabulary")}
    return replace(shape, **{name: value for name, value in given.items() if value is not None})


def machine_facts(settings: Settings) -> dict[str, Any]:
    """Say where and how it was measured."""
    is_gpu = settings.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(settings.device) if is_gpu else platform.processor() or "CPU",
        "dtype": dtype_name(settings.dtype),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "rounds": settings.rounds,
        "optimizer": settings.optimizer,
    }


def _report(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
