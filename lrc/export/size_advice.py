"""Which student widths serve and quantise well, and which near a wanted one do.

A quantised format cuts each row of a weight, which is as long as its input is wide, into blocks of 32 or 256 values; a
GPU multiplies in tiles of 64. A row that is no multiple stays in a coarser or larger type, or fills tiles with nothing.
"""

import math
from collections.abc import Mapping
from typing import Any

from lrc.models.student import head_size, resized_config

MULTIPLES = {
    256: "llama-quantize's Q4_K_M keeps these tensors in Q5_0 or Q8_0, which are larger; lrc export refuses q4_k_m",
    64: "tiles of GPU kernels are not full, and 4-bit kernels (AWQ, GPTQ) may refuse them",
    32: "no GGUF block fits: llama-quantize's Q4_K_M and the converter's Q8_0 keep these tensors in f16; lrc export "
    "refuses q4_k_m, q5_0 and q8_0",
}
"""Multiple -> what happens to a row that is none."""
FFN_FIELDS = ("intermediate_size", "moe_intermediate_size")


def size_advice(config: Any, hidden_size: int) -> list[str]:
    """Say what serves or quantises badly at a hidden size, and name the nearest sizes that don't.

    Args:
        config: The teacher's transformers config.
        hidden_size: The wanted one.

    Returns:
        A sentence each; one that says so where nothing is wrong.
    """
    said = []
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    if hidden_size % heads and demands_multiple_of_heads(config):
        said.append(f"hidden size {hidden_size} is no multiple of the {heads} heads: {config.model_type} refuses it")
    misfit = first_misfit(hidden_size)
    if misfit is not None:
        said.append(f"hidden size {hidden_size} is no multiple of {misfit}: {MULTIPLES[misfit]}")
    if said:
        said.append(f"nearest good hidden sizes: {_worded(good_sizes(config, hidden_size))}")
    for name, length in row_lengths(config.to_dict(), head=head_size(config)).items():
        if name != "hidden size" and (misfit := first_misfit(length)) is not None:
            said.append(f"{name} {length} is the teacher's, and no multiple of {misfit}: {MULTIPLES[misfit]}")
    return said or [f"hidden size {hidden_size} serves and quantises well"]


def first_misfit(length: int) -> int | None:
    """Return the smallest of 32, 64 and 256 that does not divide a length, or None."""
    return next((multiple for multiple in sorted(MULTIPLES) if length % multiple), None)


def row_lengths(values: Mapping[str, Any], *, head: int | None) -> dict[str, int]:
    """Return how long the rows of a model's weights are, by what they read.

    Args:
        values: Content of a config.json.
        head: Size of a head; None: the model has no attention.
    """
    lengths = {"hidden size": int(values["hidden_size"])}
    if head is not None:
        lengths["heads x head size"] = int(values["num_attention_heads"]) * head
    names = {"intermediate_size": "FFN width", "moe_intermediate_size": "expert width"}
    lengths |= {names[field]: values[field] for field in FFN_FIELDS if isinstance(values.get(field), int)}
    return lengths


def demands_multiple_of_heads(config: Any) -> bool:
    """Tell whether a config's class refuses a hidden size that its heads don't divide, whatever the head size is."""
    heads = int(getattr(config, "num_attention_heads", None) or 1)
    if heads == 1:
        return False
    try:
        resized_config(config, 2 * heads + 1, tied=False).validate()
    except Exception:  # noqa: BLE001  any class may object in its own way
        return True
    return False


def good_sizes(config: Any, hidden_size: int) -> dict[int, list[int]]:
    """Find the nearest sizes below and above that are multiples of 256, of 64 and of 32, and that the class takes.

    Args:
        config: The teacher's transformers config.
        hidden_size: The wanted size.

    Returns:
        Multiple -> up to two sizes, each below the teacher's, not named for a larger multiple already.
    """
    step = int(config.num_attention_heads) if demands_multiple_of_heads(config) else 1
    found: dict[int, list[int]] = {}
    for multiple in sorted(MULTIPLES, reverse=True):
        each = math.lcm(multiple, step)
        nearest = (hidden_size // each * each, -(-hidden_size // each) * each)
        named = {size for sizes in found.values() for size in sizes}
        found[multiple] = sorted({size for size in nearest if 0 < size < config.hidden_size} - named)
    return found


def _worded(found: Mapping[int, list[int]]) -> str:
    parts = [
        f"{' and '.join(map(str, sizes))} ({'a multiple' if len(sizes) == 1 else 'multiples'} of {multiple})"
        for multiple, sizes in found.items()
        if sizes
    ]
    return ", ".join(parts) or "none below the teacher's"
