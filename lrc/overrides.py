"""`section.key=value` strings as nested values, for a recipe and for what stands in for one."""

from collections.abc import Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrc.errors import ConfigError


def read_overrides(overrides: Sequence[str], *, origin: str) -> Any:
    """Read overrides into a tree that merges with a recipe's; later ones win.

    Args:
        overrides: `section.key=value` strings.
        origin: What they override, for the message.

    Raises:
        ConfigError: One has another form, or a value that is not YAML.
    """
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or "" in key.split("."):
            raise ConfigError(f"{origin}: an override must look like section.key=value, found {override!r}.")
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (yaml.YAMLError, TypeError, OmegaConfBaseException) as error:
        raise ConfigError(f"An override of {list(overrides)} can't be read as section.key=value: {error}") from error
