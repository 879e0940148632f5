"""What the width costs at the head alone: see `benchmarks/head_floor.py`, the command."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lrc.clone.head import IGNORED_LABEL, HeadWeights, head_losses
from lrc.data.blocks import collate, open_blocks
from lrc.errors import ConfigError
from lrc.evaluation.agreement import measure_states
from lrc.models.compute import choose_device, choose_dtype, dtype_name
from lrc.models.folder import resolve_folder
from lrc.models.head_reader import HeadReader
from lrc.models.teacher import load_model, load_tokenizer
from lrc.training.optimizer import Muon, set_rate
from lrc.verbs.exit_code import run_or_exit
from lrc.verbs.progress import progress_lines
from lrc.verbs.sources import locate_teacher

from .cells import Cell, parse_cell
from .measures import measured_texts
from .run import Arena
from .texts import MEASURED, Texts

KL_ALONE = HeadWeights(lm=0.0, kl=1.0)
STEP_TOKENS = 1024
SMALLEST_ENERGY = 1e-6
"""Directions of the states with less than this share of the mean energy are measured by it."""
STATES_STEPS = 200
STATES_RATE = 0.1
"""Of Adam on the states, whose coordinates have a mean square near one; it falls to zero."""


@dataclass(frozen=True, kw_only=True)
class States:
    """The teacher's states behind its last norm, in coordinates of unit energy, and its head for these."""

    train: Tensor
    """`[tokens, d_T]`, compute dtype."""
    measured: dict[str, tuple[Tensor, Tensor]]
    """Text -> the scored positions' `[tokens, d_T]` float32, and labels."""
    head: Tensor
    """`[V, d_T]`, compute dtype."""


@dataclass
class Student:
    """`z = A.T h` and a head: `E B`, or a matrix of its own."""

    down: nn.Parameter
    """`A`, `[d_T, d_S]` float32."""
    up: nn.Parameter
    """`B`, `[d_T, d_S]` float32."""
    free: nn.Parameter | None = None
    """`H`, `[V, d_S]` float32; None: `E B`."""

    def head(self, teacher_head: Tensor) -> Tensor:
        return teacher_head @ self.up.to(teacher_head.dtype) if self.free is None else self.free.to(teacher_head.dtype)


def whitened(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return `C^(-1/2)` and `C^(1/2)` of the states' mean squares `C`, float64, for unit energy in every direction."""
    moments = torch.zeros(states.shape[1], states.shape[1], dtype=torch.float64, device=states.device)
    for rows in states.split(16_384):
        moments += rows.double().T @ rows.double()
    energies, axes = torch.linalg.eigh(moments / len(states))
    roots = energies.clamp_min(SMALLEST_ENERGY * float(energies.mean())).sqrt()
    return (axes / roots) @ axes.T, (axes * roots) @ axes.T


def closed_form(head: Tensor, d_student: int) -> Tensor:
    """Return the directions, `[d_T, d_S]` orthonormal float32, that keep most of the logits' squares.

    Of states of unit energy; logits count less their mean over the vocabulary, which no softmax sees.
    """
    exact = head.double()
    exact = exact - exact.mean(0)
    _, axes = torch.linalg.eigh(exact.T @ exact)
    return axes[:, -d_student:].flip(1).float().contiguous()


def train(student: Student, states: States, *, passes: int, rate: float, progress: Callable[[int, int], None]) -> None:
    """Train `A` and the head on KL over the training text, `passes` times, at a rate that falls to zero."""
    matrices: list[nn.Parameter] = [student.down, *([] if student.free is not None else [student.up])]
    rounds = states.head.dtype == torch.bfloat16
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, lr=rate, betas=(0.9, 0.95), rounds=rounds)]
    if student.free is not None:
        size = float(student.free.detach().square().mean().sqrt())
        group = {"params": [student.free], "rate_share": size}
        optimizers.append(torch.optim.Adam([group], lr=rate, betas=(0.9, 0.95), fused=True))
    per_pass = len(states.train) // STEP_TOKENS
    generator = torch.Generator().manual_seed(0)
    for step in range(passes * per_pass):
        if step % per_pass == 0:
            order = torch.randperm(len(states.train), generator=generator)
        rows = states.train[order[(step % per_pass) * STEP_TOKENS :][:STEP_TOKENS]]
        head = student.head(states.head)
        labels = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        brought = rows @ student.down.to(rows.dtype)
        loss, _, _ = head_losses(brought, rows, head, states.head, labels, weights=KL_ALONE)
        (loss / len(rows)).backward()
        for optimizer in optimizers:
            set_rate(optimizer, rate * (1 - step / (passes * per_pass)))
            optimizer.step()
            optimizer.zero_grad()
        progress(step + 1, passes * per_pass)


def best_states(head: Tensor, brought: Tensor, teacher: Tensor, teacher_head: Tensor, steps: int) -> Tensor:
    """Return the states, `[tokens, d_S]` float32, of least KL under a head, from those that are brought there."""
    states = nn.Parameter(brought.float().clone())
    optimizer = torch.optim.Adam([states], lr=STATES_RATE, betas=(0.9, 0.99))
    labels = torch.zeros(len(states), dtype=torch.long, device=states.device)
    found, least = states.detach().clone(), torch.full((len(states),), torch.inf, device=states.device)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = STATES_RATE * (1 - step / steps)
        optimizer.zero_grad()
        loss, _, kl = head_losses(states, teacher, head, teacher_head, labels, weights=KL_ALONE)
        is_less = kl < least
        found[is_less], least[is_less] = states.detach()[is_less], kl[is_less]
        loss.backward()
        optimizer.step()
    return found


def measures(student: Student, states: States, *, best: int | None) -> dict[str, Any]:
    """Measure a student on each text: its own states, or with `best` the best ones of that many positions."""
    found = {}
    exact_head = states.head.float()
    head = student.head(exact_head).detach()
    for role, (teacher, labels) in states.measured.items():
        taken = slice(None) if best is None else slice(None, None, max(1, len(labels) // best))
        teacher, labels = teacher[taken], labels[taken]
        brought = teacher @ student.down.detach()
        own = measure_states(brought, teacher, labels, head, exact_head).summary()
        if best is not None:
            reached = best_states(head, brought, teacher, exact_head, STATES_STEPS)
            own = measure_states(reached, teacher, labels, head, exact_head).summary() | {"own_states_kl": own["kl"]}
        found[role] = own
    return found


def gather(arena: Arena, cell: Cell, texts: Texts, tokens: int) -> States:
    """Run the teacher over the front of the training text and over the measured windows."""
    folder = resolve_folder(locate_teacher(arena.teacher(cell, texts)))
    device = choose_device("auto")
    dtype = choose_dtype("auto", device)
    model = load_model(str(folder), dtype=dtype, device=device)
    reader = HeadReader(model)
    if reader.softcap or model.get_output_embeddings().bias is not None:
        raise ConfigError(f"The head of {folder} has a bias or caps its logits; this benchmark has neither.")
    entry = cell.entry
    blocks = open_blocks(
        str(texts.paths["train"]),
        load_tokenizer(folder),
        sequence_length=entry.sequence_length,
        vocab_size=model.config.vocab_size,
        text_tokens=tokens,
    )
    rows = [
        collate([blocks.read(index)]).input_ids for index in range(min(len(blocks), tokens // entry.sequence_length))
    ]
    windows = measured_texts(texts.paths, folder, sequence_length=entry.sequence_length, count=entry.measured_windows)

    def run(ids: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = reader.base(input_ids=ids.to(device), use_cache=False).last_hidden_state
        return reader.inputs(hidden).flatten(0, 1)

    with progress_lines("teacher", "rows") as progress:
        kept = []
        for done, ids in enumerate(rows, 1):
            kept.append(run(ids))
            progress(done, len(rows))
    states, head = torch.cat(kept), reader.matrix().detach()
    less, more = whitened(states)
    measured = {}
    for role in MEASURED:
        labels = torch.cat([labels.flatten() for _, labels in windows[role].windows]).to(device)
        inputs = torch.cat([run(ids) for ids, _ in windows[role].windows])
        is_scored = labels != IGNORED_LABEL
        measured[role] = ((inputs[is_scored].double() @ less).float(), labels[is_scored])
    train_states = torch.cat([(rows.double() @ less).to(dtype) for rows in states.split(16_384)])
    return States(train=train_states, measured=measured, head=(head.double() @ more).to(dtype))


def study(states: States, d_student: int, *, passes: int, rate: float, best: int) -> dict[str, Any]:
    """Return the measures of every line of the table."""
    directions = closed_form(states.head, d_student)
    student = Student(nn.Parameter(directions.clone()), nn.Parameter(directions.clone()))
    lines = {"closed form": measures(student, states, best=None)}
    with progress_lines("projections", "steps") as progress:
        train(student, states, passes=passes, rate=rate, progress=progress)
    lines["trained"] = measures(student, states, best=None)
    lines["best states"] = measures(student, states, best=best)
    with torch.no_grad():
        free = nn.Parameter(states.head.float() @ student.up)
    student = Student(student.down, student.up, free)
    with progress_lines("free head", "steps") as progress:
        train(student, states, passes=passes, rate=rate, progress=progress)
    lines["free head"] = measures(student, states, best=None)
    lines["free head, best states"] = measures(student, states, best=best)
    return lines


def table(lines: dict[str, Any]) -> str:
    """Return a line each: KL and agreement on either text."""
    rows = ["| | development KL | agreement | held-out KL | agreement |", "| --- |" + " --- |" * 4]
    for name, texts in lines.items():
        shown = (f"{texts[role]['kl']:.3f} | {texts[role]['top1_agreement']:.1%}" for role in MEASURED)
        rows.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(rows)


def run(arguments: argparse.Namespace) -> None:
    cell = parse_cell(f"{arguments.where}/default/250k/seed0")
    arena = Arena(root=Path(arguments.root), data=None if arguments.data is None else Path(arguments.data))
    d_student, texts = cell.entry.widths[cell.width], arena.texts(cell)
    states = gather(arena, cell, texts, arguments.tokens)
    lines = study(states, d_student, passes=arguments.passes, rate=arguments.rate, best=arguments.best)
    print(table(lines))
    facts = {
        "where": arguments.where,
        "hidden_size": {"teacher": states.head.shape[1], "student": d_student},
        "tokens": len(states.train),
        "passes": arguments.passes,
        "rate": arguments.rate,
        "dtype": dtype_name(states.head.dtype),
        "texts": texts.sha256,
        "lines": lines,
    }
    out = Path(arguments.out or f"runs/head_floor/{arguments.where.replace('/', '.')}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def main(help_text: str) -> None:
    parser = argparse.ArgumentParser(description=help_text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", metavar="TEACHER/WIDTH", help="as in the arena's cells")
    parser.add_argument("--data", metavar="DIR", help="folder of corpora; none: the demo's text")
    parser.add_argument("--root", default="runs/quality", help="the arena's; its texts are used (runs/quality)")
    parser.add_argument("--tokens", type=int, default=262_144, help="training tokens (262,144)")
    parser.add_argument("--passes", type=int, default=2, help="times that they are read (2)")
    parser.add_argument("--rate", type=float, default=5e-3, help="Muon's, falling to zero (5e-3)")
    parser.add_argument("--best", type=int, default=1024, help="positions of each text whose best states are found")
    parser.add_argument("--out", help="JSON file; none: runs/head_floor/TEACHER.WIDTH.json")
    arguments = parser.parse_args()
    run_or_exit(lambda: run(arguments))
