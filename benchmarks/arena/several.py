"""Several cells one after another, and the learning rate picked of a method's short ones."""

from collections.abc import Iterable
from typing import Any

from lrc.errors import NumericsError
from lrc.verbs.progress import say

from .cells import Cell, parse_cell, rate_cells
from .picked_rates import RATES, record_rate
from .results import Result
from .run import Arena, run_cell

MORE_RATES = 2
"""Rates tried beyond a grid whose best one lies at its end."""


def run_cells(
    arena: Arena, cells: Iterable[Cell], *, overwrite: bool = False
) -> tuple[list[Result], NumericsError | None]:
    """Run cells one after another; one whose numbers end it is told of, and the others go on.

    Returns:
        The finished ones, and the first such error.
    """
    done: list[Result] = []
    failed: NumericsError | None = None
    for cell in cells:
        try:
            done.append(run_cell(arena, cell, overwrite=overwrite))
        except NumericsError as error:
            say(f"{cell.name}: {error}")
            failed = failed or error
    return done, failed


def pick_rate(
    arena: Arena, method: str, *, on: str, tokens: str | None = None, overwrite: bool = False
) -> tuple[dict[float, float], float, set[str]]:
    """Run a method's short cells, and write the rate with the lowest development KL into `rates.json`.

    A best rate at the end of the grid asks for the next one, at most `MORE_RATES` times.

    Args:
        arena: Where they run.
        method: Which.
        on: TEACHER/WIDTH.
        tokens: Another budget than the teacher's short one.
        overwrite: Make the cells anew.

    Returns:
        Development KL by rate; the best rate; the names of the finished cells.

    Raises:
        NumericsError: No rate ended with numbers.
    """
    teacher, _, width = on.partition("/")
    cells = rate_cells(teacher, width, method, tokens)
    done, failed = run_cells(arena, cells, overwrite=overwrite)
    if failed is not None and not done:
        raise failed
    tried = sorted(cell.rate for cell in cells if cell.rate is not None)
    for _ in range(MORE_RATES):
        following = next_rate(tried, best_of(done))
        if following is None:
            break
        tried = sorted([*tried, following])
        cell = parse_cell(f"{on}/{method}@{following:g}/{cells[0].tokens}/seed{cells[0].seed}")
        done += run_cells(arena, [cell], overwrite=overwrite)[0]
    best = best_of(done)
    if best in (tried[0], tried[-1]) and len(tried) > 1:
        say(f"{method}: the best learning rate, {best:g}, lies at the end of what was tried")
    grid = dict(sorted((_rate_of(result), _kl_of(result)) for result in done))
    entry: dict[str, Any] = {
        "rate": best,
        "on": on,
        "tokens": cells[0].tokens,
        "development_kl": {f"{rate:g}": kl for rate, kl in grid.items()},
    }
    record_rate(arena.root / RATES, teacher, method, entry)
    return grid, best, {result["cell"] for result in done}


def next_rate(tried: list[float], best: float) -> float | None:
    """Return the rate beyond an end where the best one lies, as far from it as its neighbour; None inside the grid."""
    if len(tried) < 2:
        return None
    if best == tried[-1]:
        return float(f"{best * best / tried[-2]:.1g}")
    return float(f"{best * best / tried[1]:.1g}") if best == tried[0] else None


def best_of(done: list[Result]) -> float:
    """Return the learning rate of the cell with the lowest development KL at its end."""
    return _rate_of(min(done, key=_kl_of))


def _rate_of(result: Result) -> float:
    rate: float = result["recipe"]["train"]["learning_rate"]
    return rate


def _kl_of(result: Result) -> float:
    kl: float = result["points"][-1]["development"]["kl"]
    return kl
