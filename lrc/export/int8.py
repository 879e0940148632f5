"""A student with int8 weights (torchao, weight only, one scale a row), saved as safetensors that transformers loads.

Only the linear layers are quantised. Embeddings, norms, the head, tied or not (transformers leaves it out), and stacked
experts, which are no linear layers, stay as they are. Nothing is pickled: torchao takes its tensors apart into plain
ones.
"""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, TorchAoConfig

from lrc.errors import CheckpointError, ConfigError, NumericsError
from lrc.export.folder import written_folder
from lrc.export.plain_folder import check_plain_weights, copy_companions, write_config
from lrc.export.probe import compare, log_probabilities, probe_sequences
from lrc.models.compute import dtype_name
from lrc.models.folder import ModelTensors
from lrc.models.teacher import load_config, load_model, load_tokenizer

PARITY_NAME = "int8_parity.json"
KL_LIMIT = 5e-2
"""Largest allowed mean KL(student || int8 student) in nats."""

Say = Callable[[str], None]


def check_int8(student: Path) -> Any:
    """Check that a student can be quantised, and return its config.

    Raises:
        ConfigError: torchao is missing, or the student is quantised already.
    """
    if find_spec("torchao") is None:
        raise ConfigError("The int8 export needs torchao. Install it with: pip install torchao.")
    config = load_config(str(student))
    check_plain_weights(config, student)
    return config


def write_int8(
    student: Path,
    out: Path,
    *,
    config: Any,
    overwrite: bool = False,
    say: Say = print,
    finish: Callable[[Path], None] = lambda draft: None,
) -> Path:
    """Quantise a student's linear layers to int8 and publish it once it reloads exactly and is near the student.

    Args:
        student: Hugging Face folder that passed `check_int8`.
        out: Folder to write; with `int8_parity.json`.
        config: The student's, from `check_int8`.
        overwrite: Replace `out`.
        say: Receives one line a step.
        finish: Called with the folder before it is published, to add what else belongs there.

    Returns:
        `out`.

    Raises:
        ConfigError: `out` exists.
        CheckpointError: The weights can't be read or the disk is full.
        NumericsError: The reloaded model is not the one that was saved, or it is far from the student.
    """
    dtype = ModelTensors(student).dtype()
    sequences = probe_sequences(load_tokenizer(student), config.vocab_size)
    with written_folder(out, overwrite=overwrite) as draft:
        quantised = load_int8(student, dtype=dtype, quantise=True)
        before = log_probabilities(quantised, sequences)
        _save(quantised, student, draft)
        after = log_probabilities(load_int8(draft, dtype=dtype), sequences)
        reference = load_model(str(student), dtype=torch.float32, device=torch.device("cpu"))
        facts = {
            "dtype": dtype_name(dtype),
            "reload_difference": float((after - before).abs().max()),
            "kl_limit": KL_LIMIT,
        } | compare(after, log_probabilities(reference, sequences))
        _check(facts, out)
        (draft / PARITY_NAME).write_text(json.dumps({"passed": True} | facts, indent=2) + "\n")
        finish(draft)
    say(
        f"int8 against the student in float32, {facts['positions']} positions: KL {facts['kl']:.2e}, first choice "
        f"equal at {facts['top1_agreement']:.2%}; reloads exactly"
    )
    return out


def _save(quantised: Any, student: Path, draft: Path) -> None:
    quantised.save_pretrained(draft)
    for path in draft.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes 0600
    write_config(quantised.config, draft)
    copy_companions(student, draft)


def load_int8(folder: Path, *, dtype: torch.dtype, quantise: bool = False) -> Any:
    """Load a folder with stock transformers, quantising it on the way if it is not yet.

    Raises:
        CheckpointError: transformers or torchao can't read it.
    """
    options: dict[str, Any] = {}
    if quantise:
        from torchao.quantization import Int8WeightOnlyConfig

        options["quantization_config"] = TorchAoConfig(quant_type=Int8WeightOnlyConfig(set_inductor_config=False))
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu", **options).eval()
    except Exception as error:  # damaged weights fail in many ways, none of them with a common base
        raise CheckpointError(
            f"{folder} can't be loaded with int8 weights: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _check(facts: dict[str, Any], out: Path) -> None:
    if facts["reload_difference"] > 0:
        raise NumericsError(
            f"The int8 model must compute the same after it was saved and loaded again, but differs by "
            f"{facts['reload_difference']:.3g}. Nothing was published to {out}."
        )
    if not facts["kl"] <= KL_LIMIT:
        raise NumericsError(
            f"The int8 model must stay near the student: KL at most {KL_LIMIT:g}, found {facts['kl']:.3g} ({facts}). "
            f"Nothing was published to {out}."
        )
