"""The plan on the terminal: parameters, FLOPs, memory, machines, disk, on one screen."""

from rich.console import Console, Group
from rich.table import Table

from lrc.config import Checkpointing
from lrc.plan.inverse import HiddenSizeAnswer
from lrc.plan.run_costs import Fit, best_way
from lrc.plan.strategies import Strategy
from lrc.plan.whole import Plan
from lrc.report.number_text import bytes_text, count_text, percent, significant

FLOPS_ROWS = {
    "teacher": "teacher, layers forward",
    "student_forward": "student, layers forward",
    "student_backward": "student, layers backward",
    "merge_forward": "merges forward, once a micro-batch",
    "merge_backward": "merges backward, once a micro-batch",
    "clone": "clone terms",
    "head": "heads of both, chunked",
}
CAUSES = ("teacher", "projections", "gradients", "optimizer", "merged", "activations", "working", "communication")
HEADINGS = ("teacher", "proj.", "grads", "moments", "merged", "activ.", "working", "comm.")


def print_plan(plan: Plan, console: Console) -> None:
    """Print the plan's tables."""
    console.print(Group(*_parameter_lines(plan)))
    console.print(_flops_table(plan))
    if plan.optimizer_flops:
        console.print(
            f"{plan.shape.optimizer} adds {plan.optimizer_flops / 1e12:,.3g} TFLOP a step, shared by the devices; the "
            "hours count them"
        )
    if plan.problem is not None:
        console.print(f"memory: not known, for a step can't be followed without values: {plan.problem}", markup=False)
    else:
        console.print(_memory_table(plan))
        console.print(
            f"working, in the head: {bytes_text(plan.head_gradient_bytes, 3)} of it the merged head's gradient, "
            "unless it goes past the merge, the rest the merged head and a chunk of logits"
        )
        console.print(_machine_table(plan))
    kept = plan.shape.checkpoints
    console.print(
        f"disk: {bytes_text(plan.disk.data, 3)} token shards, {bytes_text(plan.disk.checkpoints, 3)} checkpoints "
        f"({kept} kept, the best one and one being written, {bytes_text(plan.disk.checkpoint, 3)} each), "
        f"{bytes_text(plan.disk.student, 3)} student"
    )


def _parameter_lines(plan: Plan) -> list[str]:
    sizes, held = plan.sizes, plan.shape.teacher_weights
    where = ", offloaded beside a GPU" if held.offload == "cpu" else ""
    return [
        f"teacher    {sizes.architecture.model_type}, hidden size {sizes.d_teacher}, "
        f"{sizes.teacher_parameters:,} parameters"
        + (f"; its layers' matrices in {held.format}{where}" if held.is_held else ""),
        f"student    hidden size {sizes.d_student}, {sizes.student_parameters:,} parameters "
        f"({percent(sizes.student_parameters / sizes.teacher_parameters)} of the teacher)",
        f"trained    {sizes.trained_parameters:,} parameters"
        + (f", beside {sizes.correction_parameters:,} of fixed corrections" if sizes.plan.corrections else ""),
    ]


def _flops_table(plan: Plan) -> Table:
    table = _table(
        f"GFLOPs a token, micro-batches of {plan.shape.batch} x {plan.shape.sequence}", "cause", ("GFLOP", "share")
    )
    positions, total = plan.shape.batch * plan.shape.sequence, plan.flops_per_token
    for name, label in FLOPS_ROWS.items():
        value = getattr(plan.flops, name) / positions
        table.add_row(label, f"{value / 1e9:,.2f}", percent(value / total))
    table.add_row("sum", f"{total / 1e9:,.2f}", "", style="bold")
    for policy, again in plan.recomputed.items():
        extra = again / positions
        table.add_row(f"{policy} checkpointing adds", f"{extra / 1e9:,.2f}", percent(extra / total))
    return table


def _memory_table(plan: Plan) -> Table:
    usable, rows = plan.machine.usable_bytes / 1e9, f"{plan.shape.batch} x {plan.shape.sequence}"
    table = _table(
        f"GB on each of {plan.machine.title} at {rows}; {usable:.1f} may be filled",
        "way (+s, +l: recomputes)",
        (*HEADINGS, "sum", "peak in", "most rows"),
    )
    for way in plan.ways:
        use = way.peak.use
        table.add_row(
            short_name(way.fit),
            *(f"{getattr(use, cause) / 1e9:,.1f}" for cause in CAUSES),
            f"{use.total / 1e9:,.1f}",
            way.peak.moment,
            str(way.fit.largest_batch or "none"),
            style="" if use.total <= plan.machine.usable_bytes else "dim",
        )
    return table


def short_name(fit: Fit) -> str:
    """`FSDP2 +l`: the strategy, and the first letter of a policy that computes something again."""
    return fit.strategy.name + ("" if fit.checkpointing == "none" else f" +{fit.checkpointing[0]}")


def way_in_words(strategy: Strategy, checkpointing: Checkpointing) -> str:
    """`FSDP2 with layer checkpointing`."""
    return strategy.name + ("" if checkpointing == "none" else f" with {checkpointing} checkpointing")


def _machine_table(plan: Plan) -> Table:
    table = _table(
        f"{count_text(plan.shape.tokens, 3)} tokens at {percent(plan.shape.mfu)} of the peak",
        "machine",
        ("first way that fits", "rows", "tokens/s", "hours", "most rows", "tokens/s", "hours"),
    )
    for offer in plan.offers:
        if offer.fit is None:
            table.add_row(offer.machine.title, "nothing fits", *[""] * 6)
            continue
        name = short_name(offer.fit)
        cells = [
            cell
            for pace in (offer.pace, offer.full_pace)
            if pace is not None
            for cell in (str(pace.batch), f"{pace.tokens_per_second:,.0f}", significant(pace.hours, 3))
        ]
        table.add_row(offer.machine.title, name, *(cells or ["", "", "", str(offer.fit.largest_batch)]))
    return table


def _table(title: str, first: str, others: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def answer_lines(answer: HiddenSizeAnswer, wanted: float) -> list[str]:
    """Word which hidden size gives a number of parameters."""
    near = " and ".join(f"{size} ({count:,} parameters)" for size, count in answer.nearest)
    return [f"{count_text(wanted, 3)} parameters: hidden size {answer.exact:.1f}; nearest that work: {near}"]


def verdict(plan: Plan) -> str:
    """Word what fits on the plan's machine."""
    fit = best_way([way.fit for way in plan.ways], plan.shape.batch)
    if fit is None:
        return f"fits: nothing on {plan.machine.title}, not even one row of {plan.shape.sequence} positions"
    name = way_in_words(fit.strategy, fit.checkpointing)
    return f"fits: {name} on {plan.machine.title}, up to {fit.largest_batch} rows of {plan.shape.sequence} positions"
