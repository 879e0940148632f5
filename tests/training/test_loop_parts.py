"""What loop and rollback share: numbers added up over ranks, and a phase that is entered once."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lrc.models.dense import Dense
from lrc.training.loop_parts import enter_phase, sum_over_ranks

DENSE = Dense(tensors="mlp", form="replace")


def test_one_process_keeps_its_numbers_and_several_add_them_up_in_float64() -> None:
    alone: Any = SimpleNamespace(num_processes=1)
    assert sum_over_ranks(alone, [torch.tensor(1.5), 2]) == [1.5, 2.0]
    seen: list[Tensor] = []

    def reduce(row: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        seen.append(row)
        return 2 * row

    several: Any = SimpleNamespace(num_processes=2, device=torch.device("cpu"), reduce=reduce)
    large = 2**24 + 1  # float32 can't tell it from its neighbour
    assert sum_over_ranks(several, [torch.tensor(1.5), large]) == [3.0, 2.0 * large]
    assert seen[0].dtype == torch.float64


class Reads(TorchDispatchMode):
    """Counts the numbers that are read off tensors one by one, each of which waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_sums_over_ranks_are_read_at_once() -> None:
    several: Any = SimpleNamespace(num_processes=2, device=torch.device("cpu"), reduce=lambda row, reduction: 2 * row)
    values = [torch.tensor(1.5), 0.25, torch.tensor(2, dtype=torch.int64), 3]
    with Reads() as reads:
        assert sum_over_ranks(several, values) == [3.0, 0.5, 4.0, 6.0]
    assert reads.count == 0
    with Reads() as reads:
        assert sum_over_ranks(SimpleNamespace(num_processes=1), values[:2]) == [1.5, 0.25]  # type: ignore[arg-type]
    assert reads.count == 1


def parts_of(entered: list[Dense | None], said: list[str], *, is_main: bool) -> Any:
    trained = {"dense.a": nn.Parameter(torch.zeros(3, 4)), "gains.b": nn.Parameter(torch.zeros(5))}
    pair = SimpleNamespace(dense=None, trained=lambda: trained)

    def enter(dense: Dense | None) -> None:
        pair.dense = dense
        entered.append(dense)

    accelerator = SimpleNamespace(is_main_process=is_main)
    return SimpleNamespace(
        pair=pair, engine=SimpleNamespace(enter=enter), accelerator=accelerator, log=SimpleNamespace(say=said.append)
    )


def test_a_phase_is_entered_once_and_told_once_by_the_first_process() -> None:
    for is_main in (True, False):
        entered: list[Dense | None] = []
        said: list[str] = []
        parts = parts_of(entered, said, is_main=is_main)
        for _ in range(2):
            enter_phase(parts, DENSE, 7)
        assert entered == [DENSE]
        assert said == (["step 7: the dense phase begins, 12 free weights (mlp, replace)"] if is_main else [])


def test_going_back_to_projections_is_not_told() -> None:
    entered: list[Dense | None] = []
    said: list[str] = []
    parts = parts_of(entered, said, is_main=True)
    enter_phase(parts, DENSE)
    enter_phase(parts, None)
    assert (entered, said) == ([DENSE, None], [])
