"""`lrc plan` on the command line."""

from pathlib import Path

import tyro


def plan_verb(
    source: tyro.conf.Positional[str],
    overrides: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    hidden_size: int | None = None,
    on: str | None = None,
    params: str | None = None,
    fits: str | None = None,
    tokens: str | None = None,
    mfu: float | None = None,
    json: Path | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Show what a student costs: parameters, FLOPs, memory by cause, largest batch, hours, disk; from config.json only.

    For a teacher it also lists what discovery finds in it, and ends with "supported" or the reason why not.

    Args:
        source: A recipe (YAML), or a teacher: folder or hub id.
        overrides: Changes to the recipe, section.key=value (also for a teacher: student.tie_embedding_projection=true).
        hidden_size: The student's hidden size (default: the recipe's).
        on: Machine to plan for, such as h100, 64xh100, 4x24GB or cpu (default: 8xh100).
        params: Which hidden size gives so many parameters, such as 1.5B.
        fits: The largest hidden size that can be trained on a machine, such as 24GB or 8xh100.
        tokens: Training tokens, such as 10B (default: the recipe's steps on the machine).
        mfu: Share of the machine's peak that the step's products reach (default: 0.25, as published).
        json: File to write all numbers to.
        trust_remote_code: Run code that comes with the teacher.
    """
    from lrc.verbs.plan_costs import Question, plan_costs

    question = Question(hidden_size=hidden_size, on=on, params=params, fits=fits, tokens=tokens, mfu=mfu, out=json)
    plan_costs(source, overrides, question, trust_remote_code=trust_remote_code)
