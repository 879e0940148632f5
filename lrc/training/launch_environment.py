"""What a launcher's environment says: number and rank of the processes, in every launcher's words.

No torch here: the published commands read it before a command line has been found good.
"""

from collections.abc import Mapping

# In the order in which accelerate looks for them.
WORLD_SIZE_NAMES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANK_NAMES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
TRUE = ("1", "true", "t", "yes", "y", "on")
"""As accelerate reads its own variables."""


def num_launched(environment: Mapping[str, str]) -> int:
    """Return the number of processes that the launcher started."""
    return _first_integer(environment, WORLD_SIZE_NAMES, 1)


def launched_rank(environment: Mapping[str, str]) -> int:
    """Return this process's rank among those that the launcher started."""
    return _first_integer(environment, RANK_NAMES, 0)


def is_true(text: str) -> bool:
    """Read a variable that accelerate sets to a truth value; an empty one is false."""
    return text.lower() in TRUE


def _first_integer(environment: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    return next((int(environment[name]) for name in names if environment.get(name, "").isdigit()), default)
