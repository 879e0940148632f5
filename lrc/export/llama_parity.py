"""Parity: the logits of a student re-expressed as a Llama against the student's own, before anything is published."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lrc.errors import NumericsError
from lrc.export.as_llama import LlamaPlan, is_gain, llama_tensor, stored_tensor
from lrc.export.parity import EXACT, POSITIONS, ROUNDING, difference
from lrc.models.compute import dtype_name
from lrc.models.folder import ModelTensors
from lrc.models.teacher import load_model


@torch.no_grad()
def check_llama_parity(plan: LlamaPlan, draft: Path) -> dict[str, Any]:
    """Compare student and Llama, both computed in float32.

    Without padding the folder itself must have the student's logits. With it the norm gains were scaled and rounded
    to the stored dtype: the folder must have them with the gains before the rounding, which is measured apart, and
    hold each gain as the rounding makes it.

    Args:
        plan: How the student became a Llama.
        draft: The written folder.

    Returns:
        Content of `parity.json`.

    Raises:
        NumericsError: A difference is above the tolerance, or a gain is not the student's; the folder must not be
            published.
    """
    device = torch.device("cpu")
    ids = torch.randint(0, plan.config.vocab_size, (2, POSITIONS // 2), generator=torch.Generator().manual_seed(0))
    expected = _student_logits(plan, ids)
    scale = float(expected.square().mean().sqrt())
    stored = ModelTensors(draft).dtype()
    llama = load_model(str(draft), dtype=torch.float32, device=device)
    as_stored: Tensor = llama(input_ids=ids).logits
    rounding = float((as_stored - expected).square().mean().sqrt()) / max(scale, 1e-12)
    exact = as_stored if plan.gain_scale == 1 else _with_exact_gains(plan, llama)(input_ids=ids).logits
    found = difference(exact, expected, scale)
    if not (found.relative_difference <= EXACT and rounding <= ROUNDING[stored]):  # so that NaN fails
        raise NumericsError(
            "The Llama's logits must equal the student's, as shares of their scale: largest difference within "
            f"{EXACT}, found {found.relative_difference:.3g}; root mean square of the rounding of the scaled gains to "
            f"{dtype_name(stored)} within {ROUNDING[stored]}, found {rounding:.3g}. Nothing was published."
        )
    _check_stored_gains(plan, draft)
    return {
        "passed": True,
        "student": plan.model_type,
        "after_reload": asdict(found),
        "rounding": rounding,
        "tolerance": EXACT,
        "rounding_tolerance": ROUNDING[stored],
        "dtype": dtype_name(stored),
        "positions": ids.numel(),
        "logit_scale": scale,
    }


def _check_stored_gains(plan: LlamaPlan, draft: Path) -> None:
    """Hold the folder's gains against the student's: in few bits a wrong one costs no more than the rounding may."""
    student, llama = ModelTensors(plan.folder), ModelTensors(draft)
    for name in filter(is_gain, plan.shapes):
        expected, found = stored_tensor(plan, student, name), llama.read(name)
        if found.dtype != expected.dtype or not torch.equal(found, expected):
            raise NumericsError(
                f"{name} of the Llama must be the student's gain times {plan.gain_scale:.6g} and differ from it by the "
                f"rounding of the scaled gains to {dtype_name(expected.dtype)} alone, but differs by up to "
                f"{float((found.double() - expected.double()).abs().max()):.3g} more. Nothing was published."
            )


def _student_logits(plan: LlamaPlan, ids: Tensor) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(plan.folder, config=plan.config, dtype=torch.float32).eval()
    logits: Tensor = model(input_ids=ids).logits
    return logits


def _with_exact_gains(plan: LlamaPlan, llama: Any) -> Any:
    student, weights = ModelTensors(plan.folder), llama.state_dict()
    for name in filter(is_gain, plan.shapes):
        weights[name].copy_(llama_tensor(plan, student, name))
    return llama
