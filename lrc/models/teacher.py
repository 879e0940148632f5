"""The teacher: a frozen stock causal LM, loaded once, never written."""

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from lrc.errors import CheckpointError, ConfigError
from lrc.models.folder import check_source
from lrc.models.stock import forget_quantisation, restoring
from lrc.models.text_tower import cut_tower, is_composite, tower_config


def load_config(source: str, *, trust_remote_code: bool = False) -> Any:
    """Load a causal LM's config from a folder or hub id; of a composite model its text tower's.

    Raises:
        ConfigError: The source has no readable config, or a text tower that can't be cloned.
    """
    config = read_config(source, trust_remote_code=trust_remote_code)
    return tower_config(config, source) if is_composite(config) else config


def read_config(source: str, *, trust_remote_code: bool = False) -> Any:
    """Read the transformers config of a folder or hub id as it is.

    Raises:
        ConfigError: The source has no readable config.
    """
    check_source(source)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # bad values fail in many ways, none of them with a common base
        raise ConfigError(f"The config of {source} can't be loaded: {' '.join(str(error).split())}") from error


def load_model(
    source: str, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load a causal LM for inference: evaluation mode, no gradients, the class's own choice of attention.

    Of a composite model the text tower is loaded. Weights in fp8 and mxfp4 become plain ones.

    Raises:
        ConfigError: The source is not a model, or its text tower can't be cloned.
        CheckpointError: Its weights can't be read.
    """
    config = read_config(source, trust_remote_code=trust_remote_code)
    auto_class: Any = AutoModelForMultimodalLM if is_composite(config) else AutoModelForCausalLM
    if not sys.stderr.isatty():
        disable_progress_bar()  # a bar that no terminal redraws only litters logs
    try:
        loaded: Any = auto_class.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **restoring(config),
            **exact_attention(config),
        )
    except Exception as error:  # damaged weights fail in many ways, none of them with a common base
        raise CheckpointError(
            f"The model {source} can't be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    model: PreTrainedModel
    model, loading = loaded
    if loading["missing_keys"]:  # transformers fills these with random values
        missing = sorted(loading["missing_keys"])
        raise CheckpointError(
            f"The weights of {source} must hold every tensor of the model, but {len(missing)} are missing, for example "
            f"{missing[0]}. Fetch or convert the model again."
        )
    if restoring(config):
        forget_quantisation(model.config)
        forget_quantisation(config)
    model.eval()
    if is_composite(config):
        model = cut_tower(model, tower_config(config, source))
    model.to(device)  # type: ignore[arg-type]  # its decorator hides the signature
    model.requires_grad_(False)
    return model


def exact_attention(config: Any) -> dict[str, str]:
    """Return what `from_pretrained` has to be told for attention to be the class's: the kernel has no soft-caps.

    transformers 5.6 takes the kernel for Gemma 2 nevertheless, and leaves them out; later ones don't.
    """
    softcap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return {"attn_implementation": "eager"} if softcap else {}


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """Load a folder's tokenizer, or None if it has none.

    Args:
        folder: The tokenizer's.
        trust_remote_code: Run a tokenizer's code that comes with the folder; nobody is asked.

    Raises:
        CheckpointError: Its files are damaged, or it needs code of its own that must not run.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # damaged files fail in many ways, none of them with a common base
        raise CheckpointError(
            f"The tokenizer of {folder} can't be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
