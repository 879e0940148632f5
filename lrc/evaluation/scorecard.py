"""The scorecard: one model, or student and teacher side by side, on held-out text and on the clock."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lrc.clone.head import IGNORED_LABEL, chunk_positions, float32_logits
from lrc.data.blocks import Batch
from lrc.errors import NumericsError
from lrc.evaluation.agreement import Agreement
from lrc.evaluation.effective_rank import stream_ranks
from lrc.evaluation.generation import write_tokens
from lrc.models.compute import dtype_name
from lrc.models.discovery import layer_list
from lrc.models.folder import weight_files

PROMPTS = (
    "The capital of France is",
    "Water boils when it is heated because",
    "The Roman Empire was",
    "A good way to learn a new language is",
    "The heart pumps blood",
    "In the year 1969,",
)
TIMED_TOKENS = 256
DECODED_TOKENS = 24


@torch.no_grad()
def score_text(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    windows: list[tuple[Tensor, Tensor]],
    progress: Callable[[int, int], None],
) -> tuple[Agreement, dict[str, list[float] | None]]:
    """Run both models over the held-out windows once; logits in float32.

    Args:
        student: Stock causal LM.
        teacher: Stock causal LM, or None: the student is compared with itself.
        windows: (ids, labels) `[1, seq]` each.
        progress: Called with (windows done, windows).

    Returns:
        The agreement, and the effective rank of each model's stream after each layer.

    Raises:
        NumericsError: A model's logits are not finite.
    """
    agreement = Agreement()
    with stream_ranks(_layers(student)) as student_ranks, stream_ranks(_layers(teacher)) as teacher_ranks:
        for done, (ids, labels) in enumerate(windows):
            student_logits = _logits(student, ids, role="student")
            teacher_logits = student_logits if teacher is None else _logits(teacher, ids, role="teacher")
            chunk = chunk_positions(student_logits.shape[-1], positions=len(student_logits))
            sides = (side.split(chunk) for side in (student_logits, teacher_logits, labels[0]))
            for rows in zip(*sides, strict=True):
                agreement.add(*rows)
            progress(done + 1, len(windows))
    return agreement, {"student": student_ranks, "teacher": teacher_ranks if teacher is not None else None}


def _logits(model: PreTrainedModel, ids: Tensor, *, role: str) -> Tensor:
    """Return a window's logits, `[seq, vocabulary]`.

    Raises:
        NumericsError: Some are not finite.
    """
    with float32_head(model):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    finite = logits.isfinite().all(-1)
    if not bool(finite.all()):
        raise NumericsError(
            f"The {role}'s logits must be finite, but NaN or infinity stands at {int((~finite).sum())} of "
            f"{len(finite)} positions of a held-out window. Its weights are damaged or overflow in "
            f"{dtype_name(model.dtype)}: take an earlier checkpoint, or set evaluate.compute_dtype to float32."
        )
    return logits


@contextmanager
def float32_head(model: PreTrainedModel) -> Iterator[None]:
    """Let a model's head give float32 logits while the block runs; cap and scale, which come behind it, follow in it.

    Its own product, which would be rounded to its dtype, is left out. A quantised head is left as it is.
    """
    head: Any = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or type(head.weight) is not nn.Parameter:
        yield
        return
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        kept.append(args[0])
        return args[0][..., :0, :]

    def form(_: nn.Module, args: Any, output: Any) -> Tensor:
        states = kept.pop()
        logits: Tensor = float32_logits(states.flatten(0, -2), head.weight).unflatten(0, states.shape[:-1])
        return logits if head.bias is None else logits + head.bias

    handles = [head.register_forward_pre_hook(keep), head.register_forward_hook(form)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: PreTrainedModel | None) -> list[nn.Module]:
    return [] if model is None else list(model.get_submodule(layer_list(model)).children())


def text_windows(batches: list[Batch], special_ids: set[int]) -> list[tuple[Tensor, Tensor]]:
    """Leave special tokens out of the labels, so that bits per byte counts text alone."""
    windows = []
    for batch in batches:
        is_special = torch.isin(batch.labels, torch.tensor(sorted(special_ids)))
        windows.append((batch.input_ids, batch.labels.masked_fill(is_special, IGNORED_LABEL)))
    return windows


def text_bytes(windows: list[tuple[Tensor, Tensor]], tokenizer: Any) -> int:
    """Count the UTF-8 bytes of the labelled tokens' text."""
    kept = [labels[labels != IGNORED_LABEL].tolist() for _, labels in windows]
    return sum(len(text.encode()) for text in tokenizer.batch_decode(kept, skip_special_tokens=True))


def card(
    model: PreTrainedModel, folder: Path, *, name: str, cross_entropy: float, positions: int, num_bytes: int
) -> dict[str, Any]:
    """Make one model's column of the scorecard.

    Args:
        model: The stock model, for size and speed.
        folder: Its folder, for the file size.
        name: What to call it.
        cross_entropy: Mean nats per labelled token.
        positions: Labelled tokens.
        num_bytes: Bytes of text that these tokens stand for.
    """
    prefill, decode = _speed(model)
    return {
        "name": name,
        "cross_entropy": cross_entropy,
        "perplexity": math.exp(min(cross_entropy, 700.0)),
        "bits_per_byte": cross_entropy * positions / math.log(2) / max(1, num_bytes),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "file_size_bytes": sum(path.stat().st_size for path in weight_files(folder)),
        "prefill_tokens_per_second": prefill,
        "decode_tokens_per_second": decode,
    }


@torch.no_grad()
def _speed(model: Any) -> tuple[float, float]:
    """Tokens a second of a prefill of 256 tokens and of greedy decoding after it; medians of three."""
    device = next(model.parameters()).device
    ids = torch.arange(TIMED_TOKENS, device=device)[None] % model.get_input_embeddings().num_embeddings
    prefill, decode = [], []
    for _ in range(3):
        began = time.perf_counter()
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        _wait(device)
        prefill.append(TIMED_TOKENS / (time.perf_counter() - began))
        began = time.perf_counter()
        for _ in range(DECODED_TOKENS):
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        _wait(device)
        decode.append(DECODED_TOKENS / (time.perf_counter() - began))
    return statistics.median(prefill), statistics.median(decode)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def continuations(model: Any, tokenizer: Any, *, count: int, new_tokens: int) -> list[tuple[str, str]]:
    """Continue the first `count` prompts greedily; returns (prompt, continuation) pairs."""
    pairs = []
    device = next(model.parameters()).device
    for prompt in PROMPTS[:count]:
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = inputs["input_ids"].to(device)
        output = write_tokens(
            model,
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            max_new_tokens=new_tokens,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
        )
        pairs.append((prompt, tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)))
    return pairs
