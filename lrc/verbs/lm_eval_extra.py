"""Whether the library that scores benchmark tasks is installed; asked before its modules are imported."""

from importlib.util import find_spec

from lrc.errors import ConfigError

MODULE = "lm_eval"


def require_lm_eval() -> None:
    """Refuse to go on without the package of the extra `eval`.

    Raises:
        ConfigError: It is missing.
    """
    if find_spec(MODULE) is None:
        raise ConfigError(f"lrc evaluate --tasks needs {MODULE}. Install it with: pip install 'lrc[eval]'.")
