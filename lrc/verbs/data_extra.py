"""Whether what `lrc prepare` needs beyond the core is installed; asked before its modules are imported."""

from importlib.util import find_spec

from lrc.errors import ConfigError

MODULES = ("datatrove", "orjson", "pyarrow", "zstandard")


def require_data_extra() -> None:
    """Refuse to go on without the packages of the extra `data`.

    Raises:
        ConfigError: One is missing.
    """
    missing = [name for name in MODULES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"lrc prepare needs {', '.join(missing)}. Install it with: pip install 'lrc[data]'.")
