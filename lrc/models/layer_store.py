"""The store of a held teacher: its layers' packed matrices, on the device, or at home in main memory and brought along.

Whoever needs a matrix asks for it, in the forward pass, in recomputation and in the backward pass, and nobody gives
anything back: the store keeps two layers on the device, the one that was asked for last and the next one on the way,
which is the one after it, or before it when the backward pass runs down.

On a GPU the host waits for the layer that is sent away to have been used: it runs ahead of the device, and without the
wait it would order the copies of all layers while the first one is being computed.

Main memory that a GPU can copy from at any time is pinned. CUDA's host allocator rounds each request for it up to a
power of two, up to twice the bytes, so the store asks for such blocks and lays the pieces into them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrc.models.weight_formats import Packed

Bring = Callable[[Tensor], Tensor]
"""Copies a piece from home to the device; may return before the copy is done, on a GPU."""
BLOCK_BYTES = 2**26
"""Least size of a block of pinned memory, a power of two."""
PIECES_A_BLOCK = 8
"""Pieces, of the size of the first one, that a larger block has room for: what it leaves over is at most a ninth."""
ALIGNMENT = 64
"""Bytes that a piece's place in a block is a multiple of, as torch's own tensors in main memory."""


@dataclass(kw_only=True)
class _Guest:
    """A layer on the device, or on its way there; the events are there where copies run on a stream of their own."""

    matrices: dict[str, Packed]
    arrival: torch.cuda.Event | None
    """The copy is done."""
    release: torch.cuda.Event | None = None
    """What was to be computed with it is done; None: it has not been used, or still is."""


@dataclass(kw_only=True)
class _Block:
    """Pinned memory that pieces lie in, one after the other."""

    memory: Tensor
    """Bytes, `[size]`."""
    used: int = 0


class LayerStore:
    """Packed matrices by layer and name."""

    def __init__(self, device: torch.device, *, bring: Bring | None = None) -> None:
        """Make an empty store.

        Args:
            device: Where matrices are used.
            bring: How a piece gets there; None: the matrices live there.
        """
        self.device = device
        self.num_brought = 0
        """Layers copied so far."""
        self._homes: list[dict[str, Packed]] = []
        self._blocks: list[_Block] = []
        self._bring = bring
        self._guests: dict[int, _Guest] = {}
        self._at = -1
        self._stream = torch.cuda.Stream(device) if bring is not None and device.type == "cuda" else None

    @property
    def is_offloaded(self) -> bool:
        """Whether the matrices live elsewhere."""
        return self._bring is not None

    @property
    def num_bytes(self) -> int:
        """Bytes of all matrices, wherever they live."""
        return sum(piece.nbytes for piece in self.pieces())

    @property
    def layers_here(self) -> list[int]:
        """Layers on the device beside those that live there."""
        return sorted(self._guests)

    def pieces(self) -> list[Tensor]:
        """List the tensors that all matrices consist of, where they live."""
        return [piece for home in self._homes for packed in home.values() for piece in packed.pieces]

    def add(self, layer: int, name: str, packed: Packed) -> None:
        """Put a matrix where it lives: on the device, or in main memory that a GPU can copy from at any time."""
        while len(self._homes) <= layer:
            self._homes.append({})
        if self.is_offloaded:
            send: Callable[[Tensor], Tensor] = self._laid if self._stream is not None else Tensor.cpu
            packed = replace(packed, pieces=tuple(map(send, packed.pieces)))
        self._homes[layer][name] = packed

    def _laid(self, piece: Tensor) -> Tensor:
        """Copy a piece into the first block of pinned memory that has room for it."""
        size = -(-piece.nbytes // ALIGNMENT) * ALIGNMENT
        block = next((block for block in self._blocks if block.used + size <= block.memory.nbytes), None)
        if block is None:
            block = _Block(memory=_pinned(max(BLOCK_BYTES, 2 ** (PIECES_A_BLOCK * size - 1).bit_length())))
            self._blocks.append(block)
        place = block.memory[block.used : block.used + piece.nbytes].view(piece.dtype).view(piece.shape)
        block.used += size
        return place.copy_(piece)

    def take(self, layer: int, name: str) -> Packed:
        """Give a matrix away: from here on the store holds it no more."""
        assert not self.is_offloaded
        return self._homes[layer].pop(name)

    def fetch(self, layer: int, name: str) -> Packed:
        """Return a matrix on the device."""
        if not self.is_offloaded:
            return self._homes[layer][name]
        if layer != self._at:
            self._move_to(layer)
        guest = self._guests[layer]
        packed = guest.matrices[name]
        if guest.arrival is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(guest.arrival)
            for piece in packed.pieces:
                piece.record_stream(here)  # its memory was taken from the other stream's
        return packed

    def _move_to(self, layer: int) -> None:
        """Let the layer come, if it isn't here, and the next in the same direction; send the others away."""
        following = layer + (1 if layer > self._at else -1)
        if not 0 <= following < len(self._homes):
            following = self._at  # at an end the way leads back
        if self._stream is not None and self._at in self._guests:
            self._guests[self._at].release = torch.cuda.current_stream(self.device).record_event()
        self._at = layer
        for index in set(self._guests) - {layer, following}:
            release = self._guests.pop(index).release
            if release is not None:
                release.synchronize()
        for index in (layer, following):
            if index not in self._guests and 0 <= index < len(self._homes):
                self._guests[index] = self._start(index)

    def _start(self, layer: int) -> _Guest:
        assert self._bring is not None
        self.num_brought += 1
        with torch.cuda.stream(self._stream):  # of None: nothing
            matrices = {
                name: replace(packed, pieces=tuple(map(self._bring, packed.pieces)))
                for name, packed in self._homes[layer].items()
            }
            arrival = None if self._stream is None else self._stream.record_event()
        return _Guest(matrices=matrices, arrival=arrival)


def _pinned(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
