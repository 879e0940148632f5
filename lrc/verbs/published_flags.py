"""What the published commands share: flags declared as a dataclass, read with `-` and `_` alike, and the exit code.

`published_train.py` and `published_convert.py` declare their flags here and translate the values into calls of the
verbs; `hf_trainer.py` and `convert_ckpt.py` in the repository's root only call their `main`.
"""

import argparse
import dataclasses
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_type_hints

from lrc.errors import ConfigError, nearest_name
from lrc.home_folder import expand_home
from lrc.verbs.exit_code import run_for_exit_code

Flags = TypeVar("Flags")

WORDS_FOR_TRUE = ("true", "1", "yes")
WORDS_FOR_FALSE = ("false", "0", "no")
WORDS_FOR_NONE = ("", "none", "null")


def flag(default: Any, meaning: str) -> Any:
    """Declare a flag as a dataclass field; `meaning` is its line in `--help`."""
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def read_truth(text: str) -> bool:
    """Read a boolean: True/False, 1/0 or yes/no, in any case.

    Raises:
        argparse.ArgumentTypeError: Any other word.
    """
    if text.lower() in WORDS_FOR_TRUE:
        return True
    if text.lower() in WORDS_FOR_FALSE:
        return False
    raise argparse.ArgumentTypeError(f"must be one of True, False, 1, 0, yes, no; found {text!r}")


def read_optional(text: str) -> str | None:
    """Read a text; the words for nothing (`None`, `null` and the empty one) give None."""
    path: str = expand_home(text)
    return None if text.lower() in WORDS_FOR_NONE else path


READERS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    bool: read_truth,
    str: expand_home,
    str | None: read_optional,
}


def parse_flags(argv: Sequence[str], kind: type[Flags], *, program: str) -> tuple[Flags, frozenset[str]]:
    """Read the command line into an instance of the flags' dataclass.

    Args:
        argv: The command line without the program's name.
        kind: A dataclass whose fields are made by `flag`; a field `a_b` is the flag `--a-b` or `--a_b`.
        program: Name of the command, for messages.

    Returns:
        The values, and the names of the fields that the command line gave.

    Raises:
        ConfigError: An unknown flag (with the nearest name), a value of the wrong type, a flag without its value,
            a stray word, or one flag given twice with different values.
    """
    names = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]
    arguments = [_with_dashes(word) for word in argv]
    _refuse_unknown(arguments, names, program)
    try:
        namespace, stray = _build_parser(kind, program).parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{program}: {error}.") from error
    if stray:
        raise ConfigError(f"{program} takes flags only; found {' '.join(stray)!r}, which belongs to none.")
    given = {name: _only_value(name, values, program) for name, values in vars(namespace).items()}
    return kind(**given), frozenset(given)


def run_command(command: Callable[[], None]) -> int:
    """Run a command and return its exit code: 0, or another one with a line on stderr, as `lrc` does.

    What is not explained is a defect or a full disk: code 1, with the traceback that a report of it needs.
    """
    try:
        return run_for_exit_code(command)
    except Exception as error:  # noqa: BLE001 - nothing lies above but the exit code; the traceback is printed
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def spell(name: str) -> str:
    """Return a field's name as the flag that messages show."""
    return "--" + name.replace("_", "-")


def nearest(word: str, known: Sequence[str]) -> str:
    """Return a hint at the known word nearest to an unknown one, or at all of them."""
    near = nearest_name(word, known)
    return f"known: {', '.join(known)}" if near is None else f"did you mean {near}?"


def _with_dashes(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _refuse_unknown(arguments: Sequence[str], names: Sequence[str], program: str) -> None:
    known = [spell(name) for name in names]
    found = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    unknown = [f"unknown flag {word}; {nearest(word, known)}" for word in found if word not in [*known, "--help"]]
    if unknown:
        raise ConfigError(f"{program}: " + "; ".join(unknown))


def _build_parser(kind: type[Any], program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=kind.__doc__,
        allow_abbrev=False,
        exit_on_error=False,
        argument_default=argparse.SUPPRESS,
    )
    types = get_type_hints(kind)
    for entry in dataclasses.fields(kind):
        # A boolean flag without a value means True, as in the original.
        bare: dict[str, Any] = {"nargs": "?", "const": True} if types[entry.name] is bool else {}
        parser.add_argument(
            spell(entry.name),
            dest=entry.name,
            action="append",
            type=READERS[types[entry.name]],
            metavar="VALUE",
            help=f"{entry.metadata['meaning']} (default: {entry.default!r})".replace("%", "%%"),
            **bare,
        )
    return parser


def _only_value(name: str, values: list[Any], program: str) -> Any:
    if any(value != values[0] for value in values):
        found = " and ".join(repr(value) for value in values)
        raise ConfigError(
            f"{program}: {spell(name)} is given more than once with different values, {found} (- and _ are the same)."
        )
    return values[0]
