"""The command line of the arena; `benchmarks/quality.py` has its help."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lrc.errors import ConfigError, nearest_name
from lrc.verbs.exit_code import run_for_exit_code
from lrc.verbs.progress import say

from .cells import Cell, parse_cell, quick_cells, table_cells
from .claims import claims_table
from .committed import COMMITTED, publish, publish_rates
from .measures import Tasks
from .methods import find_method, methods, sweeps
from .plot import draw_plots
from .results import Result, fresh_table, reach_table, read_results, sweep_table, table, teacher_lines
from .run import TINY_TEACHER_STEPS, Arena
from .several import pick_rate, run_cells
from .teachers import teachers


def run_command(arguments: Sequence[str], *, help_text: str) -> int:
    """Run the arena; returns the exit code."""
    options = _parser(help_text).parse_args(arguments)
    return run_for_exit_code(lambda: _run(options))


def _parser(help_text: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=help_text, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", nargs="*", help="cells by name; or `sweep NAME...`, `rates METHOD...`, `table` (all of it)")
    add("--list", action="store_true", help="list the table's cells, methods and sweeps, and run nothing")
    add("--table", action="store_true", help="print the table of finished cells")
    add("--points", action="store_true", help="with --table: every point of the curves")
    add("--reach", type=float, metavar="KL", help="with --table: training tokens to this held-out KL")
    add("--fresh", action="store_true", help="with --table: the text that is looked at once")
    add("--claims", action="store_true", help="what the default is held to, on --on, from all finished cells")
    add("--plot", action="store_true", help="draw training tokens -> KL of finished cells")
    add("--only", default="", metavar="TEXT", help="with table, --table, --plot, --publish: cells whose name has TEXT")
    add("--results", type=Path, action="append", metavar="DIR", help="more folders of results to read")
    add("--publish", action="store_true", help="copy finished cells, without machine paths, into --committed")
    add("--committed", type=Path, default=COMMITTED, metavar="DIR", help="the repository's results, read and written")
    add("--quick", action="store_true", help="every method on a tiny teacher, from nothing to table and plot")
    add("--methods", metavar="A,B", help="with --quick: these methods alone")
    add("--tokens", metavar="16k", help="with --quick, sweep, rates, --claims: another token budget")
    add("--teacher-steps", type=int, default=TINY_TEACHER_STEPS, help="with --quick: steps of the tiny teacher")
    add("--on", default="smollm2/half", metavar="TEACHER/WIDTH", help="where sweeps, rates and claims are")
    add("--data", type=Path, metavar="DIR", help="folder of corpora (docs/quality.md); default: the demo's text")
    add("--evaluation-data", metavar="DIR", help="folder of benchmark rows, or embedded:benchmarks; default: no tasks")
    add("--evaluation-items", type=int, metavar="N", help="items of each task; default: all")
    add("--evaluation-points", choices=("ends", "all"), default="ends", help="where tasks are scored")
    add("--teacher", action="append", default=[], metavar="NAME=FOLDER", help="where a teacher lies")
    add("--root", type=Path, default=Path("runs/quality"), help="where cells run and results lie")
    add("--keep", action="store_true", help="keep each cell's last checkpoint")
    add("--overwrite", action="store_true", help="make the cells anew")
    return parser


def _run(options: argparse.Namespace) -> None:
    arena = _arena(options)
    if options.list:
        _print_list()
        return
    verb, names = (options.what[0], options.what[1:]) if options.what else ("", [])
    if verb in ("sweep", "rates") and (options.claims or options.plot):
        raise ConfigError(f"`{verb}` prints a table of its own: ask for --claims and --plot in a second command.")
    cells: list[Cell] = []
    if options.quick:
        cells = quick_cells(options.tokens, options.methods.split(",") if options.methods else None)
    elif verb in ("sweep", "rates"):
        names_shown = _sweep(arena, options, names) if verb == "sweep" else _pick_rates(arena, options, names)
        if options.publish and names_shown:
            _publish(arena, options, names_shown)
        return
    elif verb == "table":
        cells = [cell for cell in table_cells() if options.only in cell.name]
    elif verb:
        cells = [parse_cell(name) for name in options.what]
    elif not (options.table or options.plot or options.claims or options.publish):
        raise ConfigError(
            "Name a cell, `sweep NAME`, `rates METHOD`, or use --list, --table, --plot, --claims, --publish or --quick."
        )
    done, failed = run_cells(arena, cells, overwrite=options.overwrite)
    if failed is not None and not done:
        raise failed
    shown = {result["cell"] for result in done}
    if options.publish:
        _publish(arena, options, shown)
    has_table = options.table or options.plot or bool(done)
    if has_table:
        _show(arena, options, shown)
    if options.claims:
        if has_table:
            print()  # a table of its own
        tokens = options.tokens or teachers()[_teacher_of(options)].headline
        print(claims_table(_finished(arena, options), on=options.on, tokens=tokens))
    if failed is not None:
        raise failed


def _arena(options: argparse.Namespace) -> Arena:
    tasks = None
    if options.evaluation_data is not None:
        tasks = Tasks(data=options.evaluation_data, limit=options.evaluation_items)
    named = {}
    for text in options.teacher:
        name, equals, folder = text.partition("=")
        if not equals or name not in teachers():
            raise ConfigError(f"--teacher must be NAME=FOLDER with one of {', '.join(teachers())}, found {text!r}.")
        named[name] = folder
    return Arena(
        root=options.root,
        committed=options.committed,
        data=options.data,
        teachers=named,
        tasks=tasks,
        all_points=options.evaluation_points == "all",
        keep=options.keep,
        tiny_teacher_steps=options.teacher_steps,
    )


def _sweep_cells(options: argparse.Namespace, names: list[str]) -> list[Cell]:
    known = sweeps()
    cells = []
    for name in names or [""]:
        if name not in known:
            near = nearest_name(name, known)
            hint = f"Did you mean {near!r}?" if near else f"There are {', '.join(known)}."
            raise ConfigError(f"There is no sweep {name!r}. {hint}")
        short = teachers()[_teacher_of(options)].short
        cells += [parse_cell(f"{options.on}/{variant}/{options.tokens or short}/seed0") for variant in known[name]]
    return cells


def _teacher_of(options: argparse.Namespace) -> str:
    teacher, _, width = options.on.partition("/")
    if teacher not in teachers() or width not in teachers()[teacher].widths:
        raise ConfigError(f"--on must be TEACHER/WIDTH, for example smollm2/half, found {options.on!r}.")
    return str(teacher)


def _pick_rates(arena: Arena, options: argparse.Namespace, names: list[str]) -> set[str]:
    """Pick each method's learning rate and print what was tried; returns the cells' names."""
    _teacher_of(options)
    cells: set[str] = set()
    lines = ["| method | learning rate | development KL |", "| --- | --- | --- |"]
    for name in names or list(methods()):
        find_method(name)
        grid, best, made = pick_rate(arena, name, on=options.on, tokens=options.tokens, overwrite=options.overwrite)
        cells |= made
        lines += [f"| {name}{' (picked)' if rate == best else ''} | {rate:g} | {kl:.3f} |" for rate, kl in grid.items()]
    print("\n".join(lines))
    return cells


def _show(arena: Arena, options: argparse.Namespace, names: set[str]) -> None:
    results = [result for result in _finished(arena, options) if _is_shown(result["cell"], options.only, names)]
    if not results:
        raise ConfigError(f"No finished cell in {arena.results} or elsewhere. `--list` shows what can be run.")
    print(table(results, every_point=options.points))
    print("".join(f"\n{line}" for line in teacher_lines(results)))
    if options.reach is not None:
        print(f"\n{reach_table(results, options.reach)}")
    if options.fresh:
        print(f"\n{fresh_table(results)}")
    if options.plot or options.quick:
        drawn = results if options.only else [result for result in results if result["method"] in methods()]
        for text in ("held_out", "development"):
            for path in draw_plots(drawn, arena.root / "plots", text=text):
                say(f"plot: {path}")


def _finished(arena: Arena, options: argparse.Namespace) -> list[Result]:
    """Read all results: of one cell the root's counts, then that of --results, then the committed one."""
    return read_results([arena.committed, *(options.results or []), arena.results])


def _sweep(arena: Arena, options: argparse.Namespace, names: list[str]) -> set[str]:
    """Run the cells of sweeps, or with --table none, and print the table; returns the names of those finished."""
    cells, failed = _sweep_cells(options, names), None
    if options.table:
        finished = {result["cell"]: result for result in _finished(arena, options)}
        for cell in cells:
            if cell.name not in finished:
                say(f"{cell.name}: not run")
        done = [finished[cell.name] for cell in cells if cell.name in finished]
    else:
        done, failed = run_cells(arena, cells, overwrite=options.overwrite)
    print(sweep_table(done))
    if failed is not None:
        raise failed
    return {result["cell"] for result in done}


def _publish(arena: Arena, options: argparse.Namespace, names: set[str]) -> None:
    """Copy the root's finished cells into the repository, and the picked rates of their teachers."""
    results = [result for result in read_results([arena.results]) if _is_shown(result["cell"], options.only, names)]
    if not results:
        raise ConfigError(f"No finished cell to publish in {arena.results}.")
    for path in publish(results, arena.committed):
        say(f"published: {path}")
    publish_rates(arena.root, arena.committed, {result["teacher"] for result in results})


def _is_shown(cell: str, only: str, names: set[str]) -> bool:
    """Tell whether a cell belongs to what was asked for; trials of learning rates do if their name is."""
    if names:
        return cell in names
    return only in cell and ("@" not in cell or "@" in only)


def _print_list() -> None:
    print("cells of the table:")
    for cell in table_cells():
        print(f"  {cell.name}")
    print("methods:")
    for name, method in methods().items():
        print(f"  {name:<16} {method.about}")
    print("sweeps:")
    for name, variants in sweeps().items():
        print(f"  {name:<22} {', '.join(variants)}")
