"""Tensors come whole and in part from one file and from the pieces of several; what lacks values is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lrc.errors import CheckpointError
from lrc.models.stored_tensors import PIECES, StoredTensors, is_piece_file, piece_name, stored_files

WHOLE = {"matrix": torch.arange(35.0).reshape(7, 5), "stack": torch.arange(24.0).reshape(3, 4, 2)}
WHOLE |= {"gain": torch.arange(3.0), "count": torch.tensor(4.0)}


def cut_rows(tensor: Tensor, rank: int, ranks: int) -> tuple[Tensor, int]:
    rows = -(-len(tensor) // ranks)
    first = min(rank * rows, len(tensor))
    return tensor[first : first + rows].contiguous(), first * tensor[0].numel()


def cut_flat(tensor: Tensor, rank: int, ranks: int) -> tuple[Tensor, int]:
    size = -(-tensor.numel() // ranks)
    first = min(rank * size, tensor.numel())
    return tensor.flatten()[first : first + size].contiguous(), first


CUTS = {"rows": cut_rows, "flat": cut_flat}


def write_pieces(folder: Path, how: str, ranks: int) -> list[Path]:
    """Write `WHOLE` as `ranks` processes do; a rank that has nothing of a tensor leaves it out."""
    for rank in range(ranks):
        tensors, places = ({"count": WHOLE["count"]} if rank == 0 else {}), {}
        for name, whole in WHOLE.items():
            if whole.dim():
                values, start = CUTS[how](whole, rank, ranks)
                if values.numel():
                    tensors[name], places[name] = values, (start, list(whole.shape))
        metadata = {PIECES: json.dumps(places)}
        save_file(tensors, folder / piece_name("model.safetensors", rank, ranks), metadata=metadata)
    return stored_files(folder, "model.safetensors")


@pytest.fixture(params=["one file", "rows 1", "rows 2", "rows 4", "flat 2", "flat 5"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> StoredTensors:
    if request.param == "one file":
        save_file(WHOLE, tmp_path / "model.safetensors")
        return StoredTensors(stored_files(tmp_path, "model.safetensors"))
    how, ranks = request.param.split()
    return StoredTensors(write_pieces(tmp_path, how, int(ranks)))


def test_tensors_come_whole(stored: StoredTensors) -> None:
    assert set(stored) == set(WHOLE) == set(stored.shapes)
    assert len(stored) == len(WHOLE)
    assert "other" not in stored
    for name, whole in WHOLE.items():
        assert stored.shapes[name] == whole.shape
        assert torch.equal(stored[name], whole)
        assert stored[name].shape == whole.shape


def test_any_run_of_values_can_be_read(stored: StoredTensors) -> None:
    for name, whole in WHOLE.items():
        flat = whole.flatten()
        for start in range(len(flat) + 1):
            for stop in range(start, len(flat) + 1):
                assert torch.equal(stored.values_of(name, start, stop), flat[start:stop]), (name, start, stop)


def test_files_of_pieces_are_listed_with_those_that_are_missing(tmp_path: Path) -> None:
    assert stored_files(tmp_path, "model.safetensors") == []
    paths = write_pieces(tmp_path, "rows", 3)
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert [path.name for path in paths] == names
    assert [path.name for path in paths if is_piece_file(path, "model.safetensors")] == names
    assert not is_piece_file(tmp_path / "model.safetensors", "model.safetensors")
    assert not is_piece_file(paths[0], "optimizer.safetensors")
    paths[2].unlink()
    paths[0].unlink()
    (tmp_path / "model-more-00001-of-00009.safetensors").write_bytes(b"")
    assert stored_files(tmp_path, "model.safetensors") == paths
    with pytest.raises(CheckpointError, match=r"model-00001-of-00003\.safetensors can't be read"):
        StoredTensors(paths)


def test_a_whole_file_is_preferred(tmp_path: Path) -> None:
    write_pieces(tmp_path, "rows", 2)
    save_file(WHOLE, tmp_path / "model.safetensors")
    assert stored_files(tmp_path, "model.safetensors") == [tmp_path / "model.safetensors"]


def test_pieces_that_lack_values_are_refused(tmp_path: Path) -> None:
    first, second = write_pieces(tmp_path, "rows", 2)
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors in .* don't hold the \d+ values of"):
        StoredTensors([first])
    with pytest.raises(CheckpointError, match="don't hold"):
        StoredTensors([first, second, second])


def test_pieces_of_other_sizes_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / piece_name("model.safetensors", rank, 2) for rank in range(2)]
    for path, start, shape in zip(paths, (0, 3), ([2, 3], [3, 2]), strict=True):
        save_file({"matrix": torch.ones(3)}, path, metadata={PIECES: json.dumps({"matrix": [start, shape]})})
    with pytest.raises(CheckpointError, match="don't hold the 6 values of matrix"):
        StoredTensors(paths)


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_a_file_that_is_not_safetensors_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors can't be read"):
        StoredTensors([path])


@pytest.mark.parametrize("places", ["[1", "[]", '{"matrix": 3}', '{"matrix": ["a", [2, 3]]}'])
def test_places_that_are_damaged_are_refused(tmp_path: Path, places: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"matrix": torch.ones(2, 3)}, path, metadata={PIECES: places})
    with pytest.raises(CheckpointError, match="can't be read"):
        StoredTensors([path])
