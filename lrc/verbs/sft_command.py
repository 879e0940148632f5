"""The command `lrc sft`: its flags, and whether what it needs beyond the core is installed."""

from importlib.util import find_spec
from pathlib import Path

import tyro

from lrc.config import load_recipe
from lrc.errors import ConfigError

MODULES = ("trl", "orjson", "zstandard")


def require_sft_extra(*, lora: bool) -> None:
    """Refuse to go on without the packages of the extra `sft`.

    Raises:
        ConfigError: One is missing.
    """
    missing = [name for name in (*MODULES, *(("peft",) if lora else ())) if find_spec(name) is None]
    if missing:
        raise ConfigError(f"lrc sft needs {', '.join(missing)}. Install it with: pip install 'lrc[sft]'.")


def sft_verb(
    recipe: tyro.conf.Positional[Path],
    overrides: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    resume: str | None = None,
    write_llama_factory: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Fine-tune a finished student on chats, if wished with its teacher beside it.

    Args:
        recipe: YAML file with sft.data; see docs/sft.md.
        overrides: Changes, section.key=value.
        resume: "auto": go on with a run that was killed.
        write_llama_factory: Train nothing; write the files that llamafactory-cli does it with into this folder.
        overwrite: Replace an earlier result.
        dry_run: Check everything, chats included, then stop.
    """
    loaded = load_recipe(recipe, overrides)
    require_sft_extra(lora=loaded.sft.lora_rank > 0)
    if write_llama_factory is not None:
        from lrc.verbs.sft_llama_factory import sft_llama_factory

        written = sft_llama_factory(loaded, write_llama_factory, overwrite=overwrite, dry_run=dry_run)
    else:
        from lrc.verbs.sft import sft

        written = sft(loaded, resume=resume, overwrite=overwrite, dry_run=dry_run)
    if not dry_run:
        print(written)
