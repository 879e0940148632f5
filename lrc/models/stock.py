"""Stock models of a config, and what a folder's config says beside the architecture: own code, quantised weights."""

from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.quantizers.auto import AutoQuantizationConfig

from lrc.errors import ConfigError

RESTORED = ("fp8", "mxfp4")
"""Formats that transformers turns into plain weights while it loads them (DeepSeek-V3's and gpt-oss's)."""
QUANTISED = "quantization_config"


def has_own_code(config: Any) -> bool:
    """Tell whether a config's class came with its folder, which the user has then allowed to run code."""
    return type(config).__module__.startswith("transformers_modules")


def stock_model(config: Any, **options: Any) -> PreTrainedModel:
    """Build a causal LM of a config with fresh weights: of transformers' class, or of the folder's own."""
    trust = {"trust_remote_code": True} if has_own_code(config) else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, **options, **trust)
    return model


def quantised_by(config: Any) -> str | None:
    """Name the format of a config's quantised weights; None for plain ones."""
    values = _quantisation(config)
    method = values.get("quant_method")
    return str(getattr(method, "value", method)) if values else None


def check_plain_or_restored(config: Any, source: str) -> None:
    """Check that a teacher's weights are plain, or become so when they are loaded.

    Raises:
        ConfigError: They are of another format.
    """
    method = quantised_by(config)
    if method is not None and method not in RESTORED:
        raise ConfigError(
            f"A teacher must hold plain weights, or {' or '.join(RESTORED)}, which are turned into plain ones, but "
            f"those of {source} are quantised by {method}. Name the model that it was made from."
        )


def restoring(config: Any) -> dict[str, Any]:
    """Return what `from_pretrained` has to be told for weights to become plain; nothing where they stay as they are."""
    if quantised_by(config) not in RESTORED:
        return {}
    return {QUANTISED: AutoQuantizationConfig.from_dict({**_quantisation(config), "dequantize": True})}


def forget_quantisation(config: Any) -> None:
    """Drop what a config says of quantised weights, of a model that has plain ones."""
    if hasattr(config, QUANTISED):
        delattr(config, QUANTISED)


def _quantisation(config: Any) -> dict[str, Any]:
    held = getattr(config, QUANTISED, None)
    if held is None:
        return {}
    return dict(held) if isinstance(held, dict) else dict(held.to_dict())
