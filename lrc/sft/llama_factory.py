"""The published way to fine-tune: LLaMA-Factory's YAML and dataset_info.json, filled in for a student and its chats."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lrc.data.row_text import ROLES
from lrc.data.source_rows import read_rows
from lrc.errors import ConfigError, DataError
from lrc.sft_config import SftConfig

SETTINGS = "sft.yaml"
DATASETS = "dataset_info.json"
READABLE = (".json", ".jsonl", ".parquet")
"""Files that LLaMA-Factory reads; it takes the kind from the last suffix."""
HUB = re.compile(r"hf://datasets/(?P<name>[^/]+/[^/]+)/data/(?P<split>\w+)-.*")
"""The hub's own layout: data/SPLIT-00000-of-00003.parquet."""
TEMPLATES = {
    "<|start_header_id|>": "llama3",
    "<start_of_turn>": "gemma",
    "<<SYS>>": "llama2",
    "Qwen": "qwen",
    "SmolLM": "smollm2",
}
"""What a chat template contains -> LLaMA-Factory's name for it; any other is read off the tokenizer."""
FORMS = {"conversations": ("from", "value"), "messages": ("role", "content")}
"""Field of a row that holds the turns -> the names of role and text in a turn."""
USUAL_ROLES = {"conversations": ("human", "gpt"), "messages": ("user", "assistant")}
"""What user and assistant are called where no row tells; the former are LLaMA-Factory's own for such rows."""


def llama_factory_files(
    out: Path,
    *,
    settings: SftConfig,
    student: Path,
    chat_template: str,
    files: Sequence[tuple[str, dict[str, Any]]],
) -> dict[str, str]:
    """Make the text of both files, by name.

    Args:
        out: The folder that they will lie in; the paths in them are absolute.
        settings: The recipe's `sft`.
        student: The student's folder.
        chat_template: Its tokenizer's.
        files: Path (or hub URL) and first row of each source of chats.

    Raises:
        ConfigError: The recipe asks for what LLaMA-Factory does not do.
        DataError: A file is of a kind that LLaMA-Factory can't read, or its rows call user and assistant by two names.
    """
    if settings.teacher_kl > 0:
        raise ConfigError("LLaMA-Factory has no teacher beside the student. Set sft.teacher_kl=0, or use lrc sft.")
    if settings.over_long == "drop":
        raise ConfigError(
            "LLaMA-Factory cuts over-long chats, it drops none. Set sft.over_long=truncate, or use lrc sft."
        )
    datasets = {f"chats_{number}": _dataset(path, row) for number, (path, row) in enumerate(files)}
    values = _values(settings, student=student, out=out, names=list(datasets), template=_template(chat_template))
    command = f"# llamafactory-cli train {out.absolute() / SETTINGS}\n"
    return {
        SETTINGS: command + yaml.safe_dump(values, sort_keys=False),
        DATASETS: json.dumps(datasets, indent=2) + "\n",
    }


def _dataset(path: str, row: dict[str, Any]) -> dict[str, Any]:
    """Describe one source of chats by its first row."""
    if hub := HUB.fullmatch(path):
        place = {"hf_hub_url": hub["name"], "split": hub["split"]}
    elif "://" in path or not path.endswith(READABLE):
        raise DataError(f"LLaMA-Factory reads {', '.join(READABLE)} on this machine; fetch or unpack {path} first.")
    else:
        place = {"file_name": str(Path(path).absolute())}
    form = _form(row)
    if form is not None:
        return {**place, "formatting": "sharegpt", "columns": {"messages": form}, **_tags(Path(path), form, row)}
    query = {"query": "input"} if "input" in row else {}
    return {**place, "formatting": "alpaca", "columns": {"prompt": "instruction", **query, "response": "output"}}


def _form(row: dict[str, Any]) -> str | None:
    """Return the field that holds a row's turns, None for a row of Alpaca's, as `messages_of` reads them."""
    return next((name for name in FORMS if isinstance(row.get(name), list)), None)


def _tags(path: Path, form: str, first: dict[str, Any]) -> dict[str, Any]:
    """Tell LLaMA-Factory what the turns call role, text, user and assistant: it leaves other rows out.

    Raises:
        DataError: The file's rows don't agree.
    """
    role, content = FORMS[form]
    named: dict[str, str] = {}
    for where, row in _rows(path, first):
        if _form(row) != form:
            raise DataError(
                f"{where}: LLaMA-Factory reads one kind of row from a file, here {form!r}, and leaves others out. "
                "Put them into a file of their own, or use lrc sft."
            )
        for word in _roles(row[form], role):
            ours = ROLES.get(word, word)
            if named.setdefault(ours, word) != word:
                raise DataError(
                    f"{where}: LLaMA-Factory knows one name of the {ours} in a file, here {named[ours]!r}, and leaves "
                    f"out rows that say {word!r}. Give all rows one name, or use lrc sft."
                )
    user, assistant = (named.get(ROLES.get(usual, usual), usual) for usual in USUAL_ROLES[form])
    if form == "conversations" and (user, assistant) == USUAL_ROLES[form]:
        return {}
    tags = {"role_tag": role, "content_tag": content, "user_tag": user, "assistant_tag": assistant}
    return {"tags": {**tags, "system_tag": "system"}}


def _rows(path: Path, first: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and value of each row that is a chat; of a set that is not on this machine the first alone."""
    if not path.is_file():
        yield str(path), first
        return
    for row in read_rows(path):
        if row.value is not None and (_form(row.value) is not None or "instruction" in row.value):
            yield f"{path}:{row.number}", row.value


def _roles(turns: list[Any], key: str) -> list[str]:
    """Return the names of user and assistant among the turns."""
    known = {*ROLES, *ROLES.values()}
    return [turn[key] for turn in turns if isinstance(turn, dict) and turn.get(key) in known]


def _template(chat_template: str) -> str | None:
    return next((name for mark, name in TEMPLATES.items() if mark in chat_template), None)


def _values(settings: SftConfig, *, student: Path, out: Path, names: list[str], template: str | None) -> dict[str, Any]:
    """Translate the recipe's section; what it does not name is as published."""
    lora = {"lora_rank": settings.lora_rank, "lora_alpha": settings.lora_alpha, "lora_target": "all"}
    return {
        "model_name_or_path": str(student.absolute()),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora" if settings.lora_rank else "full",
        **({**lora, "lora_dropout": settings.lora_dropout} if settings.lora_rank else {}),
        "dataset_dir": str(out.absolute()),
        "dataset": ",".join(names),
        **({} if template is None else {"template": template}),
        "cutoff_len": settings.sequence_length,
        "overwrite_cache": True,
        "packing": settings.packing,
        "neat_packing": settings.packing,
        "preprocessing_num_workers": 16,
        "output_dir": str(out.absolute() / "student"),
        "logging_steps": settings.log_steps,
        "save_steps": settings.save_steps,
        "plot_loss": True,
        "save_only_model": False,
        "report_to": "none",
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        **({} if settings.max_steps is None else {"max_steps": settings.max_steps}),
        "lr_scheduler_type": "constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        "warmup_ratio": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "bf16": settings.compute_dtype != "float32",
        "disable_gradient_checkpointing": not settings.activation_checkpointing,
        **({"use_cpu": True} if settings.device == "cpu" else {}),
    }
