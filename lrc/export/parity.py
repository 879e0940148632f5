"""Parity: the exported student's logits against the factored student's, before anything is published."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lrc.clone.head import softcapped
from lrc.config import ObjectiveConfig
from lrc.errors import NumericsError
from lrc.export.convert import Source, merged_tensor
from lrc.models.checkpoint import variant_of
from lrc.models.compute import dtype_name
from lrc.models.folder import ModelTensors
from lrc.models.pair_model import PairModel
from lrc.models.teacher import load_model

POSITIONS = 64
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest allowed difference of two logits as a share of the logits' root mean square, by exported dtype: rounding of
the weights is all that may differ. Merging in another order alone stays below 1e-5 in float32."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far two sets of logits are apart."""

    max_abs_difference: float
    relative_difference: float
    """The same over the root mean square of the factored student's logits."""


@torch.no_grad()
def check_parity(source: Source, draft: Path) -> dict[str, Any]:
    """Compare factored, merged in memory, and merged after reload; all computed in float32.

    Args:
        source: The checkpoint and its teacher.
        draft: The exported folder.

    Returns:
        Content of `parity.json`.

    Raises:
        NumericsError: A difference is above the tolerance; the folder must not be published.
    """
    device = torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, source.config.vocab_size, (2, POSITIONS // 2), generator=generator)
    factored = _factored_logits(source, ids, device)
    scale = float(factored.square().mean().sqrt())
    in_memory = _difference(_merged_logits(source, ids), factored, scale)
    trust = source.trust_remote_code
    reloaded_model = load_model(str(draft), dtype=torch.float32, device=device, trust_remote_code=trust)
    after_reload = _difference(reloaded_model(input_ids=ids).logits, factored, scale)
    exported = ModelTensors(draft).dtype()
    limits = ((in_memory, TOLERANCE[torch.float32]), (after_reload, TOLERANCE[exported]))
    passed = all(difference.relative_difference <= limit for difference, limit in limits)
    facts = {
        "passed": passed,
        "in_memory": asdict(in_memory),
        "after_reload": asdict(after_reload),
        "tolerance": TOLERANCE[exported],
        "dtype": dtype_name(exported),
        "positions": ids.numel(),
        "logit_scale": scale,
    }
    if not passed:
        raise NumericsError(
            f"The exported student's logits must equal the factored student's within {TOLERANCE[exported]} of their "
            f"scale, found {after_reload.relative_difference:.3g} (in memory {in_memory.relative_difference:.3g}). "
            "Nothing was published."
        )
    return facts


def _factored_logits(source: Source, ids: Tensor, device: torch.device) -> Tensor:
    trust = source.trust_remote_code
    teacher = load_model(str(source.teacher_folder), dtype=torch.float32, device=device, trust_remote_code=trust)
    pair = PairModel(
        teacher,
        hidden_size=source.student.hidden_size,
        variant=variant_of(source.student),
        objective=ObjectiveConfig(without=("all",)),
    ).eval()
    for name, parameter in pair.trained().items():
        parameter.copy_(source.trained[name])
    student, _, _ = pair.hidden_states(ids, None)
    return softcapped(student @ pair.heads()[0].T, pair.softcap)


def _merged_logits(source: Source, ids: Tensor) -> Tensor:
    """Logits of a stock model whose weights are merged in memory, never stored."""
    tensors = ModelTensors(source.teacher_folder)
    model = AutoModelForCausalLM.from_config(
        source.config, dtype=torch.float32, trust_remote_code=source.trust_remote_code
    ).eval()
    state = {name: merged_tensor(source, tensors, name).float() for name in source.plan.names}
    missing = set(dict(model.named_parameters())) - set(state)
    assert not missing, missing
    model.load_state_dict(state, strict=False)
    logits: Tensor = model(input_ids=ids).logits
    return logits


def _difference(logits: Tensor, reference: Tensor, scale: float) -> Difference:
    largest = float((logits.float() - reference).abs().max())
    return Difference(max_abs_difference=largest, relative_difference=largest / max(scale, 1e-12))
