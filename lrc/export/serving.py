"""Which engine takes a student as it is, which needs a flag or another form, and why; rules on config.json alone.

Each rule was run or read; docs/serving.md says which, where and with what version. An engine that no rule is about is
called not known, never good.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lrc.errors import ConfigError
from lrc.export.plain_folder import CONFIG
from lrc.export.size_advice import MULTIPLES, row_lengths

EXPRESSIBLE = ("llama", "mistral", "qwen2")
"""Model types whose layers compute what Llama's compute."""
TRIED_IN_TRANSFORMERS_4 = (
    "cohere",
    "cohere2",
    "deepseek_v3",
    "falcon_h1",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt_oss",
    "granite",
    "llama",
    "ministral",
    "mistral",
    "mixtral",
    "olmo2",
    "olmo3",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
)
"""Model types whose exported folders had equal logits in transformers 4.57."""
AS_LLAMA = "lrc export STUDENT OUT --as llama"
QWEN2_AS_LLAMA = """--hf-overrides '{"architectures": ["LlamaForCausalLM"], "qkv_bias": true}'"""
OWN_MODEL = "--model-impl transformers"
LLAMA_CPP = "llama.cpp (GGUF)"
GGUF_MULTIPLES = {"Q8_0": 32, "Q4_K_M": 256}
LLAMA_CPP_WINDOWS: dict[str, int | None] = {
    "cohere2": 4,
    "cohere2_moe": None,
    "exaone4": None,
    "exaone_moe": None,
    "gemma2": 2,
    "gemma3_text": 6,
    "gemma3n_text": None,
    "gemma4_text": None,
    "gpt_oss": 2,
    "granite_swa": None,
    "mellum": None,
    "olmo3": None,
}
"""Model types whose graph in llama.cpp has sliding windows (read in its sources). None: the file says which layers
slide. A number: it does not, and llama.cpp lets every so many-th layer see the whole context and all others slide."""

Answer = Literal["as is", "with a flag", "re-express", "no", "not known"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an engine makes of a student."""

    engine: str
    answer: Answer
    why: str
    how: str = ""
    """What to do; empty: nothing."""


def read_config_file(folder: Path) -> dict[str, Any]:
    """Read a student's config.json as it stands, with what every rule needs in it.

    Raises:
        ConfigError: It is damaged, or not that of a causal language model.
    """
    path = folder / CONFIG
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as JSON: {error}. Convert the student again.") from error
    lacking = [name for name in ("model_type", "hidden_size") if not isinstance(values, dict) or name not in values]
    if lacking:
        raise ConfigError(
            f"{path} must be the config of a causal language model, but has no {' and no '.join(lacking)}. Name a "
            "folder that lrc convert or lrc export wrote."
        )
    return dict(values)


def verdicts(values: Mapping[str, Any], problem: str | None) -> list[Verdict]:
    """Judge a student for each engine.

    Args:
        values: Content of its config.json.
        problem: Why the installed transformers refuse that config, or None.
    """
    if values.get("quantization_config"):
        return _of_quantised(values, problem)
    return [
        _transformers(values, problem),
        _transformers_4(values),
        _vllm(values),
        _sglang(values),
        _llama_cpp(values),
        *(_gguf_type(values, name, multiple) for name, multiple in GGUF_MULTIPLES.items()),
        _text_generation_inference(values),
    ]


def _of_quantised(values: Mapping[str, Any], problem: str | None) -> list[Verdict]:
    """Judge a folder of quantised weights, such as `lrc export --as int8` writes."""
    method = str(values["quantization_config"].get("quant_method", "unnamed"))
    if problem is None and method != "torchao":
        known = Verdict(engine="transformers 5", answer="not known", why=f"no weights of {method} were tried")
    elif problem is None:
        known = Verdict(engine="transformers 5", answer="as is", why="with torchao installed, in which its weights are")
    else:
        known = _transformers(values, problem)
    why = f"its weights are quantised ({method}), a GGUF file is made of plain ones"
    formats = (LLAMA_CPP, *(f"GGUF {name}" for name in GGUF_MULTIPLES))
    unknown = f"weights of {method} were not tried"
    return [
        known,
        *(Verdict(engine=name, answer="not known", why=unknown) for name in ("transformers 4.57", "vLLM", "SGLang")),
        *(Verdict(engine=name, answer="no", how="export the student it came from", why=why) for name in formats),
        Verdict(engine="TGI", answer="not known", why=unknown),
    ]


def active_window(values: Mapping[str, Any]) -> int | None:
    """Return the sliding window that some layer uses within the context of a config, or None."""
    window, context = values.get("sliding_window"), values.get("max_position_embeddings")
    if window is None or values.get("use_sliding_window") is False or (context is not None and window >= context):
        return None
    kinds = values.get("layer_types")
    return None if kinds is not None and "sliding_attention" not in kinds else int(window)


def window_lost_in_llama_cpp(values: Mapping[str, Any]) -> int | None:
    """Return the sliding window of a config that llama.cpp computes without, or at other layers; None if all is well.

    No short probe sees that: positions within the window are computed as they should be.
    """
    window, kind = active_window(values), values["model_type"]
    if window is None or kind not in LLAMA_CPP_WINDOWS:
        return window
    period, kinds = LLAMA_CPP_WINDOWS[kind], values.get("layer_types")
    if period is None or kinds is None:
        return None
    slides = [index % period < period - 1 for index in range(len(kinds))]
    return None if slides == [found == "sliding_attention" for found in kinds] else window


def stored_head_size(values: Mapping[str, Any]) -> int | None:
    """Return the size of a head that a config.json says or implies; None without attention."""
    if not values.get("num_attention_heads"):
        return None
    return int(values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"])


def has_own_head_size(values: Mapping[str, Any]) -> bool:
    """Tell whether heads x head size is not the hidden size, so that an engine that divides gets it wrong."""
    head = stored_head_size(values)
    return head is not None and head * values["num_attention_heads"] != values["hidden_size"]


def _can_be_llama(values: Mapping[str, Any]) -> bool:
    return values["model_type"] in EXPRESSIBLE and active_window(values) is None


def is_indivisible_llama(values: Mapping[str, Any]) -> bool:
    """Tell whether a config.json is of a Llama that transformers 5 refuses: heads that don't divide its hidden size."""
    heads = values.get("num_attention_heads") or 1
    return bool(values["model_type"] == "llama" and values["hidden_size"] % heads)


def _transformers(values: Mapping[str, Any], problem: str | None) -> Verdict:
    name = "transformers 5"
    if problem is None:
        return Verdict(engine=name, answer="as is", why="the installed version takes its config")
    if is_indivisible_llama(values):
        return Verdict(engine=name, answer="re-express", how=AS_LLAMA, why=problem)
    return Verdict(engine=name, answer="no", why=problem)


def _transformers_4(values: Mapping[str, Any]) -> Verdict:
    name, rope = "transformers 4.57", values.get("rope_parameters")
    if rope and "rope_theta" not in values:
        if _is_default_rope(rope):
            return Verdict(engine=name, answer="as is", why="the rotary base is the one that it takes by default")
        how = "write config.json anew: lrc convert and lrc export write both forms"
        why = "it does not read rope_parameters and silently takes a rotary base of 10,000 without scaling"
        return Verdict(engine=name, answer="no", how=how, why=why)
    if values["model_type"] == "gemma2":
        why = "it chooses an attention without the soft-caps by itself"
        return Verdict(engine=name, answer="with a flag", how="attn_implementation='eager'", why=why)
    if values["model_type"] in TRIED_IN_TRANSFORMERS_4:
        return Verdict(engine=name, answer="as is", why="rope_theta and rope_scaling stand beside rope_parameters")
    return Verdict(engine=name, answer="not known", why=f"no {values['model_type']} was tried with it")


def _is_default_rope(rope: Mapping[str, Any]) -> bool:
    return rope.get("rope_type", "default") == "default" and rope.get("rope_theta") == 10_000


def _vllm(values: Mapping[str, Any]) -> Verdict:
    name, kind = "vLLM", values["model_type"]
    if is_indivisible_llama(values):
        return Verdict(engine=name, answer="re-express", how=AS_LLAMA, why="it reads configs with transformers")
    if kind == "qwen2" and has_own_head_size(values):
        why = "its Qwen2 divides the hidden size by the heads, cuts q, k, v and o to that and serves noise, no error"
        if _can_be_llama(values):
            return Verdict(engine=name, answer="re-express", how=f"{AS_LLAMA}; or {QWEN2_AS_LLAMA}", why=why)
        return Verdict(engine=name, answer="with a flag", how=OWN_MODEL, why=why)
    if kind in ("llama", "mistral", "qwen2", "qwen3"):
        why = "its class takes head_dim from the config" if has_own_head_size(values) else "its sizes are ordinary"
        return Verdict(engine=name, answer="as is", why=why)
    why = f"no {kind} was tried; with the flag it runs the class of transformers"
    return Verdict(engine=name, answer="not known", how=OWN_MODEL, why=why)


def _sglang(values: Mapping[str, Any]) -> Verdict:
    name, kind = "SGLang", values["model_type"]
    if is_indivisible_llama(values):
        return Verdict(engine=name, answer="re-express", how=AS_LLAMA, why="it reads configs with transformers")
    if kind in ("llama", "qwen2", "qwen3"):
        return Verdict(engine=name, answer="as is", why="its class takes head_dim from the config (0.5.23)")
    how = AS_LLAMA if _can_be_llama(values) else ""
    return Verdict(engine=name, answer="not known", how=how, why=f"its {kind} was not read")


def _llama_cpp(values: Mapping[str, Any]) -> Verdict:
    name, kind = LLAMA_CPP, values["model_type"]
    if is_indivisible_llama(values):
        return Verdict(engine=name, answer="re-express", how=AS_LLAMA, why="its converter reads it with transformers")
    if kind == "qwen2" and has_own_head_size(values):
        why = "its qwen2 ignores head_dim: the file does not load (wrong shape)"
        if _can_be_llama(values):
            return Verdict(engine=name, answer="re-express", how=AS_LLAMA, why=why)
        return Verdict(engine=name, answer="no", why=f"{why}, and Llama has no sliding window")
    if (window := window_lost_in_llama_cpp(values)) is not None:
        why = f"its {kind} has no sliding window at the layers that look back {window} tokens only"
        return Verdict(engine=name, answer="no", how="vLLM or transformers", why=why)
    if kind in ("llama", "qwen3"):
        return Verdict(engine=name, answer="as is", why="key and value lengths are stored in the file")
    if _can_be_llama(values):
        return Verdict(engine=name, answer="re-express", how=AS_LLAMA, why=f"tried as a llama, not as a {kind}")
    return Verdict(engine=name, answer="not known", why=f"no {kind} was tried")


def _gguf_type(values: Mapping[str, Any], name: str, multiple: int) -> Verdict:
    lengths = row_lengths(values, head=stored_head_size(values))
    misfits = {what: length for what, length in lengths.items() if length % multiple}
    if not misfits:
        return Verdict(engine=f"GGUF {name}", answer="as is", why=f"every row is a multiple of {multiple}")
    worst = multiple if all(length % 32 == 0 for length in misfits.values()) else 32
    found = ", ".join(f"{what} {length}" for what, length in misfits.items())
    if len(misfits) < len(lengths):
        how = "lrc export --as gguf (f16), then llama-quantize" if multiple == 256 else "llama.cpp's own converter"
        return Verdict(engine=f"GGUF {name}", answer="re-express", how=how, why=f"in part: {found}: {MULTIPLES[worst]}")
    how = "f16" if worst == 32 else "Q8_0 or Q5_0"
    return Verdict(engine=f"GGUF {name}", answer="no", how=how, why=f"{found}: {MULTIPLES[worst]}")


def _text_generation_inference(values: Mapping[str, Any]) -> Verdict:
    name, kind = "TGI", values["model_type"]
    if kind == "qwen2" and has_own_head_size(values):
        how = AS_LLAMA if _can_be_llama(values) else ""
        return Verdict(engine=name, answer="no", how=how, why="its Qwen2 divides the hidden size by the heads")
    return Verdict(engine=name, answer="not known", why=f"its {kind} was not read")
