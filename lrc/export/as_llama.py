"""A student of another class written as the very same Llama, which engines serve that ignore other classes' sizes.

Qwen2 and Mistral compute what Llama computes, but engines take a head size for granted there. Llama has a bias at q, k,
v and o or at none, so a Qwen2's o gets one of zeros. Llama wants a hidden size that its heads divide: other students
are padded with zeros to H', where a norm of H' channels sees H/H' of the mean square, so

    gain' = gain * sqrt(H / H')        eps' = eps * H / H'

give the same output, and a zero at every channel that was added.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, MistralConfig

from lrc.errors import CheckpointError, ConfigError
from lrc.export.plain_folder import copy_companions, write_config, write_shards
from lrc.export.same_tokenizer import keep_tokenizer
from lrc.export.serving import EXPRESSIBLE, active_window, is_indivisible_llama, read_config_file
from lrc.models.folder import ModelTensors, resolve_folder
from lrc.models.stock import quantised_by
from lrc.models.student import empty_student, head_size, is_tied_config
from lrc.models.teacher import read_config

ZERO_BIAS = ".self_attn.o_proj.bias"
SAME_FIELDS = (
    "vocab_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "use_cache",
    "attention_dropout",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "rope_parameters",
)


@dataclass(frozen=True, kw_only=True)
class LlamaPlan:
    """How a student becomes a Llama."""

    folder: Path
    """The student's."""
    model_type: str
    """The student's, as its config.json has it."""
    config: Any
    """The student's transformers config."""
    llama: LlamaConfig
    shapes: dict[str, Tensor]
    """The Llama's tensors on the meta device."""

    @property
    def gain_scale(self) -> float:
        """sqrt(H / H'): what norm gains are multiplied by; 1 without padding."""
        return math.sqrt(self.config.hidden_size / self.llama.hidden_size)


def llama_plan(student: str) -> LlamaPlan:
    """Check that a student can be a Llama, and how.

    Args:
        student: Folder or hub id.

    Raises:
        ConfigError: It is no model, or computes what Llama can't.
        CheckpointError: Its weights are not there, or not what its config says.
    """
    folder = resolve_folder(student)
    values = read_config_file(folder)
    config = _source_config(folder, values)
    _check_expressible(config, folder)
    llama = _llama_config(config)
    names = {name: tensor.to("meta") for name, tensor in empty_student(llama).state_dict().items()}
    if llama.tie_word_embeddings:
        del names["lm_head.weight"]
    plan = LlamaPlan(folder=folder, model_type=values["model_type"], config=config, llama=llama, shapes=names)
    _check_tensors(plan)
    return plan


def _source_config(folder: Path, values: dict[str, Any]) -> Any:
    """The student's config; of a Llama whose heads don't divide its hidden size the Mistral that it is."""
    if not is_indivisible_llama(values) or not values.get("head_dim"):
        return read_config(str(folder))
    if values.get("attention_bias") or values.get("mlp_bias"):
        raise ConfigError(
            f"{folder} is a Llama with biases whose hidden size {values['hidden_size']} is not a multiple of its "
            f"{values['num_attention_heads']} heads: transformers 5 can't load it to check what would be written. "
            "Clone the teacher to a multiple."
        )
    return MistralConfig.from_dict({**values, "model_type": "mistral", "sliding_window": None})


def _check_expressible(config: Any, folder: Path) -> None:
    """Raise with every reason why a student is no Llama."""
    reasons = []
    if config.model_type not in EXPRESSIBLE:
        own = _own_tensors(folder)
        means = f" (it has {', '.join(own)}, which Llama has no place for)" if own else ""
        reasons.append(f"{config.model_type} computes something else than Llama{means}")
    if quantised_by(config) is not None:
        reasons.append("its weights are quantised; export the student first and quantise what comes out")
    if (window := active_window(config.to_dict())) is not None:
        reasons.append(
            f"layers look back {window} tokens only, and Llama has no sliding window (max_position_embeddings is "
            f"{config.max_position_embeddings})"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    if any(isinstance(part, dict) for part in rope.values()):
        reasons.append("its layers have different rotary embeddings, Llama's have one")
    if reasons:
        raise ConfigError(
            f"--as llama takes students of the classes {', '.join(EXPRESSIBLE)} that look at the whole context; "
            f"{folder} can't be one: {'; '.join(reasons)}. lrc serve-check {folder} says what serves it as it is."
        )


def _own_tensors(folder: Path) -> list[str]:
    """Last names of the tensors that no Llama has, such as `q_norm`."""
    known = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "embed_tokens"}
    known |= {"norm", "input_layernorm", "post_attention_layernorm"}
    owners = {name.rsplit(".", 2)[-2] for name in ModelTensors(folder).names() if "." in name}
    return sorted(owners - known)


def _llama_config(config: Any) -> LlamaConfig:
    heads = config.num_attention_heads
    padded = -(-config.hidden_size // heads) * heads
    biased = config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False))
    values = {name: getattr(config, name) for name in SAME_FIELDS}
    return LlamaConfig(
        **values,
        hidden_size=padded,
        head_dim=head_size(config),
        rms_norm_eps=config.rms_norm_eps * config.hidden_size / padded,
        attention_bias=biased,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        tie_word_embeddings=is_tied_config(config),
    )


def _check_tensors(plan: LlamaPlan) -> None:
    """Check that the student's files hold what its Llama is made of, in the shapes that its config says, and no more.

    Raises:
        CheckpointError: They don't.
    """
    stored = ModelTensors(plan.folder)
    wanted = {name for name in plan.shapes if not (name.endswith(ZERO_BIAS) and name not in stored)}
    ignored = {name for name in stored.names() if name.endswith("rotary_emb.inv_freq")} | {"lm_head.weight"}
    missing, foreign = wanted - set(stored.names()), set(stored.names()) - wanted - ignored
    if missing or foreign:
        first = min(missing or foreign)
        raise CheckpointError(
            f"{plan.folder} must hold the tensors of a {plan.config.model_type} as its config says, but {first} is "
            f"{'missing' if missing else 'one too many'}. Convert the student again."
        )
    narrow, wide = plan.config.hidden_size, plan.llama.hidden_size
    for name in sorted(wanted):
        found, target = stored.shape_and_dtype(name)[0], list(plan.shapes[name].shape)
        fits = len(found) == len(target) and all(
            size == wanted_size or (size == narrow and wanted_size == wide)
            for size, wanted_size in zip(found, target, strict=True)
        )
        if not fits:
            raise CheckpointError(
                f"{name} of {plan.folder} has the shape {found}, which does not fit its config (hidden size {narrow}, "
                f"head size {plan.llama.head_dim}). Convert the student again."
            )


def write_llama(
    plan: LlamaPlan,
    draft: Path,
    *,
    max_shard_bytes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a plan's Llama: config, shards, tokenizer; at most one shard is in memory.

    Args:
        plan: What `llama_plan` found.
        draft: An empty folder.
        max_shard_bytes: Largest file.
        progress: Called with (tensors done, tensors).
    """
    stored = ModelTensors(plan.folder)
    done = count(1)

    def tensor_of(name: str) -> Tensor:
        tensor = stored_tensor(plan, stored, name)
        progress(next(done), len(plan.shapes))
        return tensor

    shapes = {name: tensor.to(_stored_dtype(stored, name)) for name, tensor in plan.shapes.items()}
    plan.llama.dtype = stored.dtype()
    write_shards(shapes, draft, tensor_of, max_shard_bytes)
    write_config(plan.llama, draft)
    copy_companions(plan.folder, draft)
    if plan.model_type != LlamaConfig.model_type:
        keep_tokenizer(plan.folder, draft)


def _stored_dtype(stored: ModelTensors, name: str) -> torch.dtype:
    """The dtype of the student's tensor, which may be another than its neighbours'; of o's bias the folder's."""
    return stored.read(name).dtype if name in stored else stored.dtype()  # a file's values are mapped, not read


def stored_tensor(plan: LlamaPlan, stored: ModelTensors, name: str) -> Tensor:
    """Make one tensor of the Llama as it is written: in the dtype that the student's has."""
    return llama_tensor(plan, stored, name).to(_stored_dtype(stored, name))


def llama_tensor(plan: LlamaPlan, stored: ModelTensors, name: str) -> Tensor:
    """Make one tensor of the Llama: the student's, zeros beyond its hidden size; scaled gains are float32."""
    shape = plan.shapes[name].shape
    if name not in stored:  # o's bias; everything else was checked to be there
        return torch.zeros(shape, dtype=stored.dtype())
    tensor = stored.read(name)
    if tensor.shape == shape:
        return tensor.contiguous()
    if is_gain(name):
        tensor = tensor.float() * plan.gain_scale
    padded = torch.zeros(shape, dtype=tensor.dtype)
    padded[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return padded


def is_gain(name: str) -> bool:
    """Whether a Llama's tensor is a norm's gain."""
    return name.endswith("norm.weight")
