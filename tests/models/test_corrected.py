"""Which weights of a layer have a place for a correction."""

from types import SimpleNamespace
from typing import Any

import pytest

from lrc.clone.sites import Correction, Stage, Variant
from lrc.models.corrected import corrected_places
from lrc.models.tiny import random_model
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.test_pair import make_pair

MLP = Stage(
    kind="mlp", readers=("mlp.gate_proj", "mlp.up_proj"), writers=("mlp.down_proj",), norm="norm", post_norm=None
)
WHOLE = {"mlp.down_proj.weight": 0, "mlp.gate_proj.weight": 1, "mlp.up_proj.weight": 1}
OUTPUT = {"mlp.down_proj.weight": 0}


def places(correction: Correction, *inherited: str) -> dict[str, int]:
    names: Any = SimpleNamespace(projected={f"layers.0.{name}": None for name in WHOLE}, gains=(), inherited=inherited)
    return corrected_places(names, "layers.0.", (MLP,), Variant(correction=correction))


def test_an_mlp_has_them_for_its_output_or_for_all_its_weights() -> None:
    assert places("none") == {}
    assert places("outputs") == OUTPUT
    assert places("mlp") == WHOLE
    assert places("mlp", "layers.0.mlp.up_proj.bias", "layers.0.self_attn.sinks", "layers.1.mlp.scan") == WHOLE


def test_what_holds_more_than_its_readers_and_writer_has_one_for_its_output_alone() -> None:
    assert places("mlp", "layers.0.mlp.scan") == OUTPUT
    assert places("outputs", "layers.0.mlp.scan") == OUTPUT


def test_readers_right_in_a_layer_have_none_beside_its_other_tensors() -> None:
    bare = Stage(kind="mlp", readers=("up",), writers=("down",), norm=None, post_norm=None)
    for others, expected in (((), {"down.weight": 0, "up.weight": 1}), (("layers.0.q.weight",), {"down.weight": 0})):
        names: Any = SimpleNamespace(projected=dict.fromkeys(others), gains=(), inherited=("layers.1.q.weight",))
        assert corrected_places(names, "layers.0.", (bare,), Variant(correction="mlp")) == expected


@pytest.mark.parametrize(
    ("family", "matrices"), [("llama", 3), ("olmo2", 3), ("granite", 3), ("starcoder2", 2), ("phi", 1), ("mixtral", 0)]
)
def test_a_family_s_mlps(family: str, matrices: int) -> None:
    """Of each layer; Phi's run beside the attention, so no start knows what they have to make."""
    pair = make_pair(random_model(FAMILY_CONFIGS[family]()), 16, Variant(correction="mlp"))
    assert sum(name.startswith("corrections.") for name in pair.stored()) == matrices * len(pair.layers)
