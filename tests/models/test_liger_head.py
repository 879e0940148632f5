"""Liger's kernel gives the head's own numbers, is taken where it can be, and is refused by name where it can't."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.clone.head import IGNORED_LABEL, HeadWeights, head_losses
from lrc.config import ObjectiveConfig, TrainConfig
from lrc.errors import ConfigError
from lrc.models import liger_head, pair_head
from lrc.models.liger_head import OLDEST, PACKAGES, liger_losses, takes_liger
from tests.models import liger_against_ours
from tests.models.test_pair import batch, counts_of, fill_random, gradients, make_pair
from tests.tiny import tiny_teacher

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
LIGER = "liger_kernel.transformers"
missing = [name for name in PACKAGES if find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
def test_liger_gives_the_head_s_own_losses_and_gradients() -> None:
    done = subprocess.run(
        [sys.executable, "-m", liger_against_ours.__name__],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2 * len(liger_against_ours.CELLS)
    assert max(max(cell) for cell in found) < 2e-6


class MeanOfRows:
    """Liger's interface by plain formulas: the mean KL of labelled positions at a temperature, no `T^2`."""

    made: list[dict[str, Any]] = []  # noqa: RUF012  # what the class was called with, over a test

    def __init__(self, **settings: Any) -> None:
        self.made.append(settings)
        self.settings = settings

    def __call__(self, student: Tensor, head: Tensor, teacher: Tensor, teacher_head: Tensor, labels: Tensor) -> Tensor:
        keep = labels != self.settings["ignore_index"]
        s, t = (
            (states[keep] @ matrix.T / self.settings["temperature"]).log_softmax(-1)
            for states, matrix in ((student, head), (teacher, teacher_head))
        )
        one, other = (t, s) if self.settings["jsd_beta"] == 0 else (s, t)
        return (one.exp() * (one - other)).sum() / max(1, int(keep.sum()))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put `MeanOfRows` in Liger's place; returns what it will be called with."""
    module = ModuleType(LIGER)
    module.LigerFusedLinearJSD = MeanOfRows  # type: ignore[attr-defined]
    monkeypatch.setattr(liger_head, "import_module", {LIGER: module}.__getitem__)
    monkeypatch.setattr(MeanOfRows, "made", [])
    return MeanOfRows.made


@pytest.mark.parametrize("masked", [(1, 4), tuple(range(6))], ids=["some masked", "all masked"])
@pytest.mark.parametrize("lm", [0.0, 0.4])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(("direction", "share"), [("forward", 0.0), ("reverse", 1.0)])
def test_its_mean_becomes_the_sums_that_the_objective_takes(
    stand_in: list[dict[str, Any]],
    direction: Any,
    share: float,
    temperature: float,
    lm: float,
    masked: tuple[int, ...],
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 3), (6, 5), (11, 3), (11, 5))
    student, teacher, head, other = (torch.randn(*shape, generator=generator).double() for shape in shapes)
    student.requires_grad_()
    head.requires_grad_()
    labels = torch.randint(11, (6,), generator=generator)
    labels[list(masked)] = IGNORED_LABEL
    weights = HeadWeights(lm=lm, kl=1.3, temperature=temperature, direction=direction)
    found, expected = (
        losses(student, teacher, head, other, labels, weights=weights) for losses in (liger_losses, head_losses)
    )
    for one, wanted in ((found[0], expected[0]), (found[1], expected[1]), (found[2].sum(), expected[2].sum())):
        torch.testing.assert_close(one, wanted, rtol=0, atol=1e-10)
    assert not found[2][labels == IGNORED_LABEL].any()
    assert not found[1].requires_grad
    assert not found[2].requires_grad
    for one, wanted in zip(
        *(torch.autograd.grad(0.37 * x[0], (student, head)) for x in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, wanted, rtol=0, atol=1e-10)
    assert stand_in == [
        {"jsd_beta": share, "ignore_index": -100, "temperature": temperature, "accum_dtype": torch.float32}
    ]


def test_a_pair_asks_liger_where_it_trains_and_its_own_head_where_it_measures(stand_in: list[dict[str, Any]]) -> None:
    pair = make_pair(tiny_teacher("llama"), 16, lm_weight=0.5)
    fill_random(pair)
    ids, labels, valid = batch()
    counts = counts_of(labels, valid)
    losses, updates = pair(ids, labels, valid, counts), gradients(pair, ids, labels, valid)
    assert not stand_in
    pair.has_liger_head = True
    for one, other in zip(pair(ids, labels, valid, counts), losses, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for name, update in gradients(pair, ids, labels, valid).items():
        torch.testing.assert_close(update, updates[name], rtol=1e-4, atol=1e-6)
    assert len(stand_in) == 2
    with torch.no_grad():
        assert torch.equal(pair(ids, labels, valid, counts).kl, losses.kl)
    assert len(stand_in) == 2


def test_the_pair_s_own_head_is_the_default() -> None:
    assert not make_pair(tiny_teacher("llama"), 16).has_liger_head
    assert pair_head.head_losses is head_losses
    assert TrainConfig(max_steps=1).head_kernel == "own"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liger_head, "find_spec", lambda name: name in PACKAGES)
    monkeypatch.setattr(liger_head, "version", {"liger-kernel": OLDEST}.__getitem__)


KL = ObjectiveConfig()
OBSTACLES: list[tuple[ObjectiveConfig, float | None, torch.device, str]] = [
    (KL, None, CPU, "it runs on a GPU, and the run is on cpu"),
    (ObjectiveConfig(kl_weight=0.0, lm_weight=1.0), None, CUDA, "no KL is trained"),
    (ObjectiveConfig(kl_direction="skewed"), None, CUDA, "objective.kl_direction = skewed"),
    (KL, 30.0, CUDA, "as the teacher does at 30.0"),
]


@pytest.mark.usefixtures("installed")
def test_liger_is_taken_on_a_gpu_unless_the_recipe_takes_the_package_s_own() -> None:
    for objective in (KL, ObjectiveConfig(kl_direction="reverse", lm_weight=1.0, temperature=40.0)):
        assert takes_liger("auto", objective, None, CUDA)
        assert takes_liger("liger", objective, None, CUDA)
        assert not takes_liger("own", objective, None, CUDA)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("objective", "softcap", "device", "reason"), OBSTACLES, ids=["CPU", "no KL", "skewed", "cap"])
def test_what_liger_can_t_compute_is_ours_or_refused(
    objective: ObjectiveConfig, softcap: float | None, device: torch.device, reason: str
) -> None:
    assert not takes_liger("auto", objective, softcap, device)
    assert not takes_liger("own", objective, softcap, device)
    with pytest.raises(ConfigError, match=r"^train\.head_kernel = liger can't .*Take auto or own\.$") as caught:
        takes_liger("liger", objective, softcap, device)
    assert reason in str(caught.value)
    assert ";" not in str(caught.value)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("found", "said"),
    [("0.8.5", None), ("0.10.0", None), ("0.8.4", "found 0.8.4"), ("0.6.2", "found 0.6.2"), (None, "not know")],
)
def test_a_liger_that_may_not_sum_in_float32_is_ours_or_refused(
    monkeypatch: pytest.MonkeyPatch, found: str | None, said: str | None
) -> None:
    def version(name: str) -> str:
        assert name == "liger-kernel"
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(liger_head, "version", version)
    assert takes_liger("auto", KL, None, CUDA) is (said is None)
    if said is not None:
        with pytest.raises(ConfigError, match=r"must be of version 0\.8\.5 or newer, .*pip install -U") as caught:
            takes_liger("liger", KL, None, CUDA)
        assert said in str(caught.value)


@pytest.mark.parametrize(("there", "named"), [((), "liger_kernel and triton"), (("triton",), "liger_kernel can't")])
def test_without_the_package_it_is_ours_and_the_refusal_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], named: str
) -> None:
    monkeypatch.setattr(liger_head, "find_spec", lambda name: name in there or None)
    assert not takes_liger("auto", KL, None, CUDA)
    with pytest.raises(ConfigError, match="pip install liger-kernel") as caught:
        takes_liger("liger", KL, None, CUDA)
    assert named in str(caught.value)
