"""What a recipe's `teacher` and data name: a path, a hub id, or what the demo embeds (`embedded:...`)."""

from lrc.embedded.benchmarks import embedded_benchmarks
from lrc.embedded.teacher import embedded_teacher
from lrc.embedded.text import embedded_text_folder
from lrc.errors import ConfigError
from lrc.verbs.progress import say

EMBEDDED = "embedded:"
EMBEDDED_TEACHER = "smollm2-135m-instruct"
EMBEDDED_BENCHMARKS = "benchmarks"
EMBEDDED_TEXTS = {"train": "train.jsonl", "held-out": "held_out.jsonl"}


def locate_teacher(name: str) -> str:
    """Turn a recipe's teacher into a folder or hub id, fetching the embedded one if it is asked for.

    Raises:
        ConfigError: There is no embedded teacher of that name.
    """
    if not name.startswith(EMBEDDED):
        return name
    inner = name.removeprefix(EMBEDDED)
    if inner != EMBEDDED_TEACHER:
        raise ConfigError(f"The embedded teacher is {EMBEDDED}{EMBEDDED_TEACHER}, found {name!r}.")
    return str(embedded_teacher(inner, report=say))


def locate_data(name: str) -> str:
    """Turn a recipe's data into a file, folder or glob, fetching the embedded text if it is asked for.

    Raises:
        ConfigError: There is no embedded text of that name.
    """
    if not name.startswith(EMBEDDED):
        return name
    inner = name.removeprefix(EMBEDDED)
    if inner not in EMBEDDED_TEXTS:
        known = ", ".join(f"{EMBEDDED}{text}" for text in EMBEDDED_TEXTS)
        raise ConfigError(f"The embedded texts are {known}; found {name!r}.")
    return str(embedded_text_folder(report=say) / EMBEDDED_TEXTS[inner])


def locate_benchmarks(name: str) -> str:
    """Turn `--data-dir` into a folder, fetching the embedded benchmarks if they are asked for.

    Raises:
        ConfigError: There are no embedded benchmarks of that name.
    """
    if not name.startswith(EMBEDDED):
        return name
    if name.removeprefix(EMBEDDED) != EMBEDDED_BENCHMARKS:
        raise ConfigError(f"The embedded benchmarks are {EMBEDDED}{EMBEDDED_BENCHMARKS}, found {name!r}.")
    return str(embedded_benchmarks(report=say))
