"""`lrc serve-check`: which engines take a student as it is, which need a flag or another form, and why."""

from pathlib import Path

import tyro


def serve_check_verb(student: tyro.conf.Positional[Path], /) -> None:
    """Say which engines take a student as it is, which need a flag or another form, and why.

    Args:
        student: Folder that lrc convert or lrc export wrote; only its config.json is read.
    """
    print("\n".join(serve_check(student)))


def serve_check(student: Path) -> list[str]:
    """Judge a student folder for each engine.

    Args:
        student: The folder.

    Returns:
        Lines to print.

    Raises:
        ConfigError: It holds no config.json of a causal language model.
    """
    from lrc.errors import ConfigError
    from lrc.export.serving import read_config_file, verdicts
    from lrc.models.folder import check_source
    from lrc.models.teacher import read_config

    if not student.is_dir():
        raise ConfigError(f"The student must be a folder with a config.json, but {student} is no folder.")
    check_source(str(student))
    values = read_config_file(student)
    try:
        read_config(str(student))
        problem = None
    except ConfigError as error:
        problem = str(error).split("can't be loaded: ", 1)[-1]
    lines = []
    for verdict in verdicts(values, problem):
        lines.append(f"{verdict.engine:<18} {verdict.answer:<12} {verdict.why}")
        if verdict.how:
            lines.append(f"{'':<31} -> {verdict.how.replace('STUDENT', str(student))}")
    return lines
