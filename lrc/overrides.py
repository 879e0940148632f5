"""A recipe before it is typed: `section.key=value` strings as nested values, and where in them a mistake stands."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrc.data_config import SourceConfig
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


def place_of(error: OmegaConfBaseException, layers: Sequence[Any]) -> str:
    """Return the key that an error is about, empty if it names none.

    OmegaConf leaves out which of `prepare.sources` it is in: the first that can't be read by itself.

    Args:
        error: What merging raised.
        layers: What was merged, in order.
    """
    key = str(error.full_key or "")
    if error.object_type is SourceConfig:
        sources = [source for layer in layers for source in enumerate(OmegaConf.select(layer, "prepare.sources") or ())]
        for number, source in sources:
            try:
                OmegaConf.merge(OmegaConf.structured(SourceConfig), source)
            except OmegaConfBaseException:
                return f"prepare.sources[{number}].{key}"
    return key


def not_a_section(layers: Sequence[Any], recipe: Any) -> str:
    """Name the section, at any depth, that a plain value was given for; OmegaConf does not.

    Args:
        layers: What was merged, in order.
        recipe: The dataclass with the sections.
    """
    found = (_plain_section(layer, recipe, "") for layer in layers)
    return next(filter(None, found), "a section")


def _plain_section(values: Any, section: Any, prefix: str) -> str | None:
    for entry in dataclasses.fields(section):
        found = values.get(entry.name) if dataclasses.is_dataclass(entry.type) else None
        if found is None:
            continue
        name = f"{prefix}{entry.name}"
        place = _plain_section(found, entry.type, f"{name}.") if OmegaConf.is_dict(found) else name
        if place is not None:
            return place
    return None
