"""The store of packed layers: what is asked for is there, two layers at most, the next one always on its way."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lrc.models import layer_store
from lrc.models.layer_store import LayerStore
from lrc.models.weight_formats import WeightFormat, pack, packed_bytes, restore

CPU = torch.device("cpu")
LAYERS = 6


def store_of(*, offloaded: bool) -> tuple[LayerStore, list[Tensor]]:
    """Six layers of one matrix; offloaded ones are copied, as a GPU would, from and to main memory."""
    store = LayerStore(CPU, bring=torch.clone if offloaded else None)
    weights = [torch.full((4, 8), float(index + 1)) for index in range(LAYERS)]
    for index, weight in enumerate(weights):
        store.add(index, "w", pack(weight, "int8"))
    return store, weights


def test_what_lives_on_the_device_is_never_copied() -> None:
    store, weights = store_of(offloaded=False)
    assert not store.is_offloaded
    for index, weight in enumerate(weights):
        assert store.fetch(index, "w") is store.fetch(index, "w")
        torch.testing.assert_close(restore(store.fetch(index, "w")), weight)
    assert store.layers_here == []
    assert store.num_brought == 0
    assert store.num_bytes == LAYERS * (4 * 8 + 4 * 4)


def test_a_step_finds_every_layer_on_its_way_in_both_directions() -> None:
    store, weights = store_of(offloaded=True)
    assert store.is_offloaded
    way = [*range(LAYERS), *reversed(range(LAYERS))]
    for step in range(2):
        for place, index in enumerate(way):
            waits = index not in store.layers_here
            for _ in range(3):  # teacher, merges, and in the backward pass recomputation and gradients
                torch.testing.assert_close(restore(store.fetch(index, "w")), weights[index])
            assert len(store.layers_here) == 2
            assert waits is (step == place == 0)  # only the very first one
    # each layer once up and once down; the top layer and the one below it are still there when the way turns, the
    # lowest two when the next step begins
    assert store.num_brought == 2 * 2 * LAYERS - 2 - 2 - 2


def test_a_measure_runs_up_and_begins_again() -> None:
    store, weights = store_of(offloaded=True)
    for _ in range(2):
        for index in range(LAYERS):
            torch.testing.assert_close(restore(store.fetch(index, "w")), weights[index])
            assert len(store.layers_here) <= 2


@pytest.mark.parametrize("layers", [1, 2])
def test_a_shallow_teacher_is_brought_once(layers: int) -> None:
    store = LayerStore(CPU, bring=torch.clone)
    for index in range(layers):
        store.add(index, "w", pack(torch.ones(2, 2), "native"))
    for index in (*range(layers), *reversed(range(layers))) * 3:
        assert restore(store.fetch(index, "w")).shape == (2, 2)
    assert store.num_brought == layers


def test_a_layer_without_matrices_is_no_obstacle() -> None:
    store = LayerStore(CPU, bring=torch.clone)
    for index in (0, 2):
        store.add(index, "w", pack(torch.ones(2, 2), "native"))
    for index in (0, 2, 0):
        assert restore(store.fetch(index, "w")).shape == (2, 2)


class FakeStreams:
    """Stands for CUDA's streams and events; notes in order what is asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.now = "compute"
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self._named("copies"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self._named("compute"))
        monkeypatch.setattr(torch.cuda, "stream", self._within)
        self.pinned: list[int] = []
        monkeypatch.setattr(layer_store, "_pinned", self._pinned)
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: self.log.append(f"used on {stream.name}"))

    def bring(self, piece: Tensor) -> Tensor:
        self.log.append(f"copy {float(piece.max()):g} on {self.now}")
        return piece.clone()

    def _pinned(self, num_bytes: int) -> Tensor:
        self.pinned.append(num_bytes)
        return torch.empty(num_bytes, dtype=torch.uint8)

    def _named(self, name: str) -> Any:
        return SimpleNamespace(
            name=name,
            record_event=lambda: self._event(f"{name} {len(self.log)}"),
            wait_event=lambda event: self.log.append(f"{name} waits for {event.name}"),
        )

    def _event(self, name: str) -> Any:
        return SimpleNamespace(name=name, synchronize=lambda: self.log.append(f"host waits for {name}"))

    def _within(self, stream: Any) -> Any:
        streams = self

        class Within:
            def __enter__(self) -> None:
                streams.now = stream.name

            def __exit__(self, *problem: object) -> None:
                streams.now = "compute"

        return Within()


def test_copies_run_on_their_own_stream_and_never_more_than_two_layers_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU: the order of the calls only. The host waits for a layer's work before the place of its copy is reused."""
    streams = FakeStreams(monkeypatch)
    store = LayerStore(torch.device("cuda"), bring=streams.bring)
    for index in range(4):
        store.add(index, "w", pack(torch.full((2, 2), float(index)), "native"))
    for index in (0, 1, 2, 3, 2):
        streams.log.append(f"layer {index}")
        store.fetch(index, "w")
    assert streams.log == [
        "layer 0",
        *("copy 0 on copies", "copy 1 on copies"),
        *("compute waits for copies 2", "used on compute"),
        "layer 1",  # layer 0 is left; layer 2 may come when its work, all before event 6, is done
        *("host waits for compute 6", "copy 2 on copies"),
        *("compute waits for copies 3", "used on compute"),
        "layer 2",
        *("host waits for compute 11", "copy 3 on copies"),
        *("compute waits for copies 8", "used on compute"),
        "layer 3",  # the top: layer 2 stays, for the way leads back
        *("compute waits for copies 13", "used on compute"),
        "layer 2",
        *("host waits for compute 19", "copy 1 on copies"),
        *("compute waits for copies 8", "used on compute"),
    ]


@pytest.mark.parametrize("format", ["native", "int8", "nf4"])
def test_pinned_memory_is_asked_for_in_powers_of_two_and_hardly_more_than_the_pieces(
    monkeypatch: pytest.MonkeyPatch, format: WeightFormat
) -> None:
    """CUDA's host allocator would round everything else up to a power of two."""
    streams = FakeStreams(monkeypatch)
    monkeypatch.setattr(layer_store, "BLOCK_BYTES", 2**12)
    store = LayerStore(torch.device("cuda"), bring=torch.clone)
    shapes, generator = {"gate": (144, 136), "q": (72, 80), "k": (40, 80)}, torch.Generator().manual_seed(0)
    packed = {
        (layer, name): pack(torch.randn(shape, generator=generator).bfloat16(), format)
        for layer in range(24)
        for name, shape in shapes.items()
    }
    for (layer, name), matrix in packed.items():
        store.add(layer, name, matrix)
    assert store.num_bytes == 24 * sum(packed_bytes(shape, torch.bfloat16, format) for shape in shapes.values())
    assert all(size.bit_count() == 1 for size in streams.pinned)
    rounded = sum(2 ** (piece.nbytes - 1).bit_length() for piece in store.pieces())
    assert sum(streams.pinned) < 1.25 * store.num_bytes < rounded
    for (layer, name), matrix in packed.items():
        for piece, wanted in zip(store.fetch(layer, name).pieces, matrix.pieces, strict=True):
            assert torch.equal(piece, wanted)
    assert all(piece.data_ptr() % layer_store.ALIGNMENT == 0 for piece in store.pieces())
