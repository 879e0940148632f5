"""The published data command: a named mix of sources becomes the published `train.jsonl`, by way of `lrc prepare`.

`data/generate_general_data_parallel.py` calls `main`. The mixes are the files of `configs/recipes/data`.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrc.config import Recipe, recipe_to_dict
from lrc.data.shards import ShardBlocks, read_manifest
from lrc.data.source_files import is_remote
from lrc.data.tokenizer_hash import tokenizer_sha256
from lrc.data_config import DataConfig, PrepareConfig, prepare_problems
from lrc.errors import ConfigError, DataError
from lrc.models.folder import resolve_folder
from lrc.models.teacher import load_config, load_tokenizer
from lrc.verbs.data_extra import require_data_extra
from lrc.verbs.progress import say
from lrc.verbs.published_flags import flag, parse_flags, run_command
from lrc.verbs.sources import locate_teacher

PROGRAM = "generate_general_data_parallel.py"
RECIPES = "configs/recipes/data"
"""Below the folder that the command lies in."""
NOT_IN_SHARDS = ("executor", "workers", "cluster", "max_bad_share")
"""Settings of `prepare` that its shards do not depend on, as in `lrc/data/plan_tasks.py:fingerprint`."""
LLAMA3_VOCABULARY = 128_000
"""Llama 3's tokenizer has at least so many tokens, Llama 2's 32,000."""


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """Tokenise and pack the sources of a published data mix."""

    version: str | None = flag(None, "mix: the name of a file of configs/recipes/data; required")
    tkn_path: str | None = flag(None, "folder or hub id of the teacher, for its tokenizer; required")
    num_workers: int = flag(8, "processes")
    data_max_len: int = flag(2048, "tokens of a row")
    data_root: str = flag("../datasets", "folder below which the sources lie and the result is written")
    overwrite: bool = flag(False, "replace an earlier result; not in the original")
    dry_run: bool = flag(False, "check everything, write nothing; not in the original")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the published data command; return its exit code."""
    return run_command(lambda: _generate(sys.argv[1:] if argv is None else argv))


def load_mix(path: Path, *, data_root: Path) -> PrepareConfig:
    """Read a mix and place its sources below the data root.

    Raises:
        ConfigError: There is no such mix, or it is not one.
    """
    if not path.is_file():
        known = ", ".join(sorted(found.name.removesuffix(".yaml") for found in path.parent.glob("*.yaml")))
        raise ConfigError(f"{PROGRAM}: --version must be one of {known or 'none'} ({path.parent}), but {path} is not.")
    try:
        mix = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PrepareConfig), OmegaConf.load(path)))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    assert isinstance(mix, PrepareConfig)
    problems = prepare_problems(mix)
    if problems:
        raise ConfigError(f"{path}: " + "; ".join(problems) + ".")
    places = [source.path if is_remote(source.path) else str(data_root / source.path) for source in mix.sources]
    return replace(
        mix, sources=[replace(source, path=place) for source, place in zip(mix.sources, places, strict=True)]
    )


def family_name(model_type: str, vocab_size: int) -> str:
    """Name a tokenizer's family as the published folders do: llama3, llama2, qwen, phi, or the model type itself."""
    if model_type == "llama":
        return "llama3" if vocab_size >= LLAMA3_VOCABULARY else "llama2"
    return next((name for name in ("qwen", "phi") if model_type.startswith(name)), model_type)


def write_rows(
    shards: Path, target: Path, *, sequence_length: int, vocab_size: int, tokenizer_sha256: str | None
) -> int:
    """Write token shards as rows of the published format; returns their number.

    Raises:
        DataError: The shards are another tokenizer's or damaged, or the disk is full or not writable; nothing stands at
            `target` then.
    """
    blocks = ShardBlocks(
        shards, sequence_length=sequence_length, vocab_size=vocab_size, tokenizer_sha256=tokenizer_sha256
    )
    draft = target.with_name(f".{target.name}.partial")
    try:
        with draft.open("w", encoding="utf-8") as out:
            for index in range(len(blocks)):
                block = blocks.read(index)
                out.write(json.dumps({"input_ids": block.ids.tolist(), "data_cls": block.data_class}) + "\n")
        os.replace(draft, target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise DataError(f"{target} can't be written: {error}. Free some space and run again.") from error
    return len(blocks)


def _check_shards(shards: Path, recipe: Recipe, tokenizer_sha256: str | None) -> None:
    """Check that the shards of an earlier call are what this one would make.

    Raises:
        ConfigError: They were made otherwise.
        DataError: They don't tell how they were made.
    """
    from lrc.verbs.prepare import RECIPE

    path = shards / RECIPE
    try:
        made = _shard_settings(OmegaConf.to_container(OmegaConf.load(path)))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} must tell what the shards beside it were made of, but can't be read: {error!r}. Make them anew "
            "with --overwrite."
        ) from error
    asked = _shard_settings(recipe_to_dict(recipe))
    differ = [f"prepare.{name}" for name, value in asked.items() if made.get(name) != value]
    if tokenizer_sha256 not in (None, read_manifest(shards)["tokenizer_sha256"]):
        differ.append("tokenizer")
    if differ:
        raise ConfigError(
            f"The shards in {shards} were made with another {' and '.join(differ)} than is asked for. Make them anew "
            "with --overwrite, or name another --data-root."
        )


def _shard_settings(recipe: Any) -> dict[str, Any]:
    """Return what of a recipe's plain values decides the shards, with the places of the sources below the data root."""
    root = Path(recipe["run"]).parent
    plain = json.loads(json.dumps(recipe["prepare"]))  # lists, where a config has tuples
    settings = {name: value for name, value in plain.items() if name not in NOT_IN_SHARDS}
    paths = [source["path"] for source in settings["sources"]]
    places = [path if is_remote(path) else os.path.relpath(path, root) for path in paths]
    sources = zip(settings["sources"], places, strict=True)
    return settings | {"sources": [source | {"path": place} for source, place in sources]}


def _generate(argv: Sequence[str]) -> None:
    require_data_extra()
    from lrc.verbs.prepare import prepare

    flags, _ = parse_flags(argv, DataFlags, program=PROGRAM)
    missing = [name for name in ("version", "tkn_path") if not getattr(flags, name)]
    if missing:
        raise ConfigError(f"{PROGRAM}: " + ", ".join(f"--{name.replace('_', '-')}" for name in missing) + " is needed.")
    assert flags.version is not None and flags.tkn_path is not None
    if flags.data_max_len < 1 or flags.num_workers < 1:
        raise ConfigError(f"{PROGRAM}: --data-max-len and --num-workers must be at least 1.")
    root = Path(__file__).parents[2]
    mix = load_mix(root / RECIPES / f"{flags.version}.yaml", data_root=Path(flags.data_root))
    teacher = locate_teacher(flags.tkn_path)
    config, tokenizer = load_config(teacher), load_tokenizer(resolve_folder(teacher, weights=False))
    sha256 = None if tokenizer is None else tokenizer_sha256(tokenizer)
    family = family_name(config.model_type, config.vocab_size)
    folder = Path(flags.data_root) / f"mix_general_{family}_tokenized_{flags.version}"
    target = folder / "train.jsonl"
    if target.exists() and not flags.overwrite:
        raise ConfigError(f"{target} is there already. Replace it with --overwrite.")
    recipe = Recipe(
        run=str(folder),
        teacher=flags.tkn_path,
        data=DataConfig(train=str(target), sequence_length=flags.data_max_len, document_masking=False),
        prepare=replace(mix, workers=flags.num_workers),
    )
    shards = folder / "prepare"
    if shards.is_dir() and not flags.overwrite:  # whole, of a run that was killed while it wrote the rows
        _check_shards(shards, recipe, sha256)
        say(f"the shards in {shards} are used, which an earlier call has made")
    else:
        prepare(recipe, overwrite=flags.overwrite, dry_run=flags.dry_run)
    if not flags.dry_run:
        length, words = flags.data_max_len, config.vocab_size
        rows = write_rows(shards, target, sequence_length=length, vocab_size=words, tokenizer_sha256=sha256)
        print(f"{target}: {rows} rows of at most {flags.data_max_len} tokens")
