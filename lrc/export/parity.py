"""Parity: the exported student's logits against the factored student's, before anything is published."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrc.config import ObjectiveConfig
from lrc.errors import NumericsError
from lrc.export.convert import Source, exported_dtype, merged_tensor
from lrc.export.original_student import take_student_eps
from lrc.export.streamed_parity import (
    float32_bytes,
    is_streamed,
    streamed_factored_logits,
    streamed_student_logits,
)
from lrc.models.checkpoint import variant_of
from lrc.models.compute import dtype_name
from lrc.models.folder import ModelTensors
from lrc.models.pair_model import PairModel
from lrc.models.stock import stock_model
from lrc.models.teacher import load_model

POSITIONS = 64
WHOLE_BYTES = 2**30
"""Largest teacher in float32 that is loaded whole, where its files name tensors as its model does."""
EXACT = 1e-4
"""Largest allowed difference of two logits, as a share of the logits' root mean square, where only the order of float32
sums differs: factored against merged, and merged and rounded against read back. Measured: below 1e-5."""
ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Allowed root mean square of what rounding the weights to the exported dtype does to the logits, as a share of theirs.
Not the largest difference: over millions of logits that is several times as large (0.256 in bfloat16 for a student of
135 M parameters whose export was right)."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two sets of logits are apart."""

    max_abs_difference: float
    relative_difference: float
    """The same over the root mean square of the factored student's logits."""


def whole_model_note(source: Source) -> str | None:
    """Say so if the check will hold a teacher whole that it would stream if its files named tensors as its model."""
    if not source.renamed or (size := float32_bytes(source.teacher_folder)) <= WHOLE_BYTES:
        return None
    return (
        f"the files of {source.teacher_folder} don't hold the tensors of its model as they are (the text tower of a "
        f"composite, stacked experts, fp8 or mxfp4), so the check holds the teacher whole, in float32: about "
        f"{size / 1e9:.1f} GB."
    )


@torch.no_grad()
def check_parity(
    source: Source, draft: Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Compare factored with merged, merged and rounded with read back; all computed in float32.

    A wrong merge or file can't hide behind the rounding of the export: the folder is held against the same weights
    rounded in memory. One model after the other is built, run and freed: the pair (the whole teacher in float32), the
    merged student, the folder's. Of a teacher of more than `WHOLE_BYTES` a layer at a time is there
    (`lrc/export/streamed_parity.py`), unless its files don't hold its model's tensors as they are (`Source.renamed`:
    composites, stacked experts, fp8, mxfp4).

    Args:
        source: The checkpoint and its teacher.
        draft: The exported folder.
        progress: Called with (parts done, parts): models, or of a large teacher the layers and heads of two passes.

    Returns:
        Content of `parity.json`.

    Raises:
        NumericsError: A difference is above the tolerance; the folder must not be published.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, source.config.vocab_size, (2, POSITIONS // 2), generator=generator)
    exported = ModelTensors(draft).dtype()
    factored, merged, rounded, reloaded = _all_logits(source, ids, draft, exported, progress)
    scale = float(factored.square().mean().sqrt())
    in_memory = difference(merged, factored, scale)
    rounding = float((rounded - factored).square().mean().sqrt()) / max(scale, 1e-12)
    after_reload = difference(reloaded, rounded, scale)
    found = (in_memory.relative_difference, after_reload.relative_difference, rounding)
    limits = (EXACT, EXACT, ROUNDING[exported])
    passed = all(difference <= limit for difference, limit in zip(found, limits, strict=True))
    facts = {
        "passed": passed,
        "in_memory": asdict(in_memory),
        "after_reload": asdict(after_reload),
        "rounding": rounding,
        "tolerance": EXACT,
        "rounding_tolerance": ROUNDING[exported],
        "dtype": dtype_name(exported),
        "positions": ids.numel(),
        "logit_scale": scale,
    }
    if not passed:
        raise NumericsError(
            "The exported student's logits must equal the factored student's, as shares of their scale: in memory "
            f"within {EXACT}, found {found[0]:.3g}; read back against rounded in memory within {EXACT}, found "
            f"{found[1]:.3g}; root mean square of the rounding to {dtype_name(exported)} within {ROUNDING[exported]}, "
            f"found {rounding:.3g}. Nothing was published."
        )
    return facts


def _all_logits(
    source: Source, ids: Tensor, draft: Path, exported: torch.dtype, progress: Callable[[int, int], None]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of the factored student, of the merged one, of the merged and rounded one, and of the folder's."""
    numbers = count(1)
    if is_streamed(source, WHOLE_BYTES):
        total = 2 * (source.architecture.num_layers + 1)

        def note_part() -> None:
            progress(next(numbers), total)

        factored = streamed_factored_logits(source, ids, note_part)
        return factored, *streamed_student_logits(source, ids, draft, exported, note_part)
    factored = _factored_logits(source, ids)
    progress(next(numbers), 3)
    merged, rounded = _merged_logits(source, ids, exported)
    progress(next(numbers), 3)
    reloaded = _reloaded_logits(source, ids, draft)
    progress(next(numbers), 3)
    return factored, merged, rounded, reloaded


def _factored_logits(source: Source, ids: Tensor) -> Tensor:
    teacher = _load(source, source.teacher_folder)
    take_student_eps(source.config, teacher.config)
    pair = PairModel(
        teacher,
        hidden_size=source.student.hidden_size,
        variant=variant_of(source.student),
        objective=ObjectiveConfig(without=("all",)),
    ).eval()
    pair.enter(source.dense)
    for name, parameter in pair.stored().items():
        parameter.data = source.trained[name].to(parameter)  # float32 is shared, not copied
    return pair.logits(ids)[0]


def _merged_logits(source: Source, ids: Tensor, exported: torch.dtype) -> tuple[Tensor, Tensor]:
    """Float32 logits of a stock model merged in memory, never stored: in float32, and with weights as exported."""
    tensors = source.open_teacher()
    model = stock_model(source.config, dtype=torch.float32).eval()
    missing = set(dict(model.named_parameters())) - set(source.plan.names)
    assert not missing, missing
    weights = model.state_dict()
    for name in source.plan.names:
        weights[name].copy_(merged_tensor(source, tensors, name))
    exact: Tensor = model(input_ids=ids).logits
    for name in source.plan.names:
        weights[name].copy_(weights[name].to(exported_dtype(source, tensors, name, exported)))
    return exact, model(input_ids=ids).logits


def _reloaded_logits(source: Source, ids: Tensor, draft: Path) -> Tensor:
    logits: Tensor = _load(source, draft)(input_ids=ids).logits
    return logits


def _load(source: Source, folder: Path) -> Any:
    device, trust = torch.device("cpu"), source.trust_remote_code
    return load_model(str(folder), dtype=torch.float32, device=device, trust_remote_code=trust)


def difference(logits: Tensor, reference: Tensor, scale: float) -> Difference:
    """Measure how far logits are from a reference; `scale` is the reference's root mean square."""
    largest = float((logits.float() - reference).abs().max())
    return Difference(max_abs_difference=largest, relative_difference=largest / max(scale, 1e-12))
