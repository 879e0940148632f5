"""Whether the library that scores benchmark tasks is installed; asked before its modules are imported."""

from importlib.util import find_spec

from lrc.errors import ConfigError

MODULE = "lm_eval"


def require_lm_eval(what: str = "lrc evaluate --tasks") -> None:
    """Refuse to go on without the package of the extra `eval`, which `what` needs.

    Raises:
        ConfigError: It is missing.
    """
    if find_spec(MODULE) is None:
        raise ConfigError(f"{what} needs {MODULE}. Install it with: pip install 'lrc[eval]'.")
