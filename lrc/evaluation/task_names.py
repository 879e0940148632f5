"""Which tasks there are to ask for: the published nine, reasoning, and the metric that each is compared by."""

from collections.abc import Collection

from lrc.errors import ConfigError, nearest_name

SEED = (
    "arc_easy",
    "arc_challenge",
    "logiqa",
    "commonsense_qa",
    "piqa",
    "winogrande",
    "boolq",
    "sciq",
    "mmlu",
)
"""The nine tasks of the paper's tables, in their order; zero-shot."""
REASONING = ("gsm8k",)
CODE = ("humaneval", "mbpp")
"""Tasks that run what the model writes."""
SETS = {"seed": SEED, "reasoning": (*REASONING, *CODE)}

METRICS = {
    "arc_challenge": "acc_norm,none",
    "logiqa": "acc_norm,none",
    "gsm8k": "exact_match,strict-match",
    "humaneval": "pass@1,create_test",
    "mbpp": "pass_at_1,none",
}
"""The metric and filter that the tables compare a task by, as lm-evaluation-harness names them."""
OTHER_METRIC = "acc,none"
"""The metric of every task that METRICS does not list, if the task has it."""


def chosen_tasks(text: str, *, allow_code: bool) -> tuple[list[str], list[str]]:
    """Turn the value of `--tasks` into task names, each once, in the order given.

    Args:
        text: Names and sets (`seed`, `reasoning`), separated by commas.
        allow_code: Whether tasks that run the model's code may be chosen.

    Returns:
        The names, and those of a set that are left out because they run code.

    Raises:
        ConfigError: Nothing is named, or a task that runs code without permission.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ConfigError(f"--tasks must be names separated by commas, found {text!r}. Example: --tasks seed,gsm8k.")
    names: dict[str, None] = {}
    left_out: dict[str, None] = {}
    for word in words:
        for name in SETS.get(word, (word,)):
            if name in CODE and not allow_code:
                if word == name:
                    raise ConfigError(
                        f"{name} runs the code that the model writes, on this machine. Use --allow-code where that is "
                        f"safe (a container without secrets), or leave {name} out."
                    )
                left_out[name] = None
            else:
                names[name] = None
    return list(names), list(left_out)


def check_names(names: Collection[str], known: Collection[str]) -> None:
    """Check that every task is one that there is.

    Raises:
        ConfigError: With the nearest name of the first that is not.
    """
    for name in names:
        if name not in known:
            near = nearest_name(name, [*SETS, *known])
            hint = f"Did you mean {near!r}?" if near else "`lm_eval ls tasks` lists the names."
            raise ConfigError(f"There is no task {name!r}. {hint}")
