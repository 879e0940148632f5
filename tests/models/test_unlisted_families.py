"""Five causal-LM classes that nobody listed, picked by seed: each passes every oracle or is refused for a reason."""

import random
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

from lrc.errors import ConfigError
from lrc.models.discovery import discover
from lrc.models.oracles import run_oracles
from lrc.models.student import resized_config
from lrc.models.text_tower import is_composite, tower_config
from lrc.models.tiny import random_model, tiny_config
from tests.models.family_configs import BASE, FAMILY_CONFIGS

SEED = 4
NUM_PICKED = 5


def picked() -> list[str]:
    """Pick classes that take the tiny sizes and are not in the table of promised ones."""
    names = sorted(set(CLASSES) - set(FAMILY_CONFIGS))
    random.Random(SEED).shuffle(names)
    return list(islice((name for name in names if takes_tiny_sizes(name)), NUM_PICKED))


def takes_tiny_sizes(name: str) -> bool:
    try:
        make_config(name)
    except StrictDataclassError:  # GPT Neo lists its layers in a field of its own
        return False
    return True


def make_config(name: str) -> Any:
    sizes = BASE | {"num_key_value_heads": 4, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4}
    sizes["num_experts_per_tok"] = 2  # a family's own choice may exceed the four experts
    return AutoConfig.for_model(name, **sizes)


def cloned_config(config: Any) -> Any:
    """Return what `load_config` makes of a folder with this config alone."""
    return tower_config(config, Path()) if is_composite(config) else config


def refusal_of(config: Any) -> str | None:
    try:
        discover(cloned_config(config))
    except ConfigError as refusal:
        return str(refusal)
    return None


def both_axes_follow(config: Any, name: str) -> bool:
    shapes = []
    for size in (config.hidden_size, 2 * config.hidden_size):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(resized_config(config, size, tied=False))
        shapes.append(model.get_parameter(name).shape)
    return all(a != b for a, b in zip(*shapes, strict=True))


def rows_read(config: Any, name: str, positions: int) -> int:
    """Count the rows that a module of the stock model gets for that many positions."""
    model = random_model(tiny_config(config))
    rows: list[int] = []
    model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: rows.append(args[0].numel() // args[0].shape[-1])
    )
    model(input_ids=torch.arange(positions)[None])
    return rows[0]


def refusal_holds(config: Any, reason: str) -> bool:
    """Tell whether the reason can be seen on the stock classes themselves."""
    if found := re.search(r"both axes of (\S+) ", reason):
        return both_axes_follow(config, found.group(1))
    if found := re.search(r"text tower is of the type (\S+), for which transformers has no causal LM class", reason):
        return found.group(1) == config.text_config.model_type not in CLASSES
    if found := re.search(r"^(\S+) reads (\d+) rows that its block makes of (\d+) positions", reason):
        return rows_read(config, found.group(1), int(found.group(3))) == int(found.group(2)) != int(found.group(3))
    if found := re.search(r"(\S+) belongs to neither its embedding, layers", reason):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        stray = model.get_parameter(found.group(1))
        return ".layers." not in found.group(1) and not any(stray is own for end in ends for own in end.parameters())
    if "no hidden_size" in reason:
        return not hasattr(config, "hidden_size")
    if "no tensor follows config.hidden_size" in reason:
        return hasattr(config, "text_config") or bool(type(config).sub_configs)
    if "can't be built" in reason:
        with pytest.raises(Exception), torch.device("meta"):  # noqa: B017, PT011  any way of failing is the reason
            AutoModelForCausalLM.from_config(config)
        return True
    return False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", picked())
def test_an_unlisted_class_passes_or_is_refused_for_a_reason_that_holds(name: str) -> None:
    config = make_config(name)
    refusal = refusal_of(config)
    if refusal is not None:
        assert refusal_holds(config, refusal), refusal
        return
    results = run_oracles(random_model(tiny_config(cloned_config(config))))
    assert all(result.passed for result in results), [result for result in results if not result.passed]
