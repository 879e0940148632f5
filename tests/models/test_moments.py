"""What an optimiser remembers, by hand: two moments a value of AdamW, one and the rows' sizes of a matrix with Muon."""

import torch

from lrc.models.moments import checkpoint_bytes, moment_bytes, moment_shapes

SHAPES = {"projections.a": torch.Size([6, 4]), "gains.b": torch.Size([4]), "dense.table": torch.Size([10, 4])}


def test_adamw_remembers_two_moments_and_a_count_of_everything() -> None:
    assert moment_shapes({"gains.b": torch.Size([4])}, "adamw") == {
        "step/gains.b": torch.Size([]),
        "exp_avg/gains.b": torch.Size([4]),
        "exp_avg_sq/gains.b": torch.Size([4]),
    }
    assert moment_bytes(SHAPES, "adamw") == 8 * (24 + 4 + 40)
    assert checkpoint_bytes(SHAPES, "adamw") == 12 * (24 + 4 + 40)


def test_muon_remembers_one_moment_and_the_sizes_of_the_rows_of_a_matrix() -> None:
    assert moment_shapes({"projections.a": torch.Size([6, 4])}, "muon") == {
        "row_size/projections.a": torch.Size([6, 1]),
        "momentum/projections.a": torch.Size([6, 4]),
    }
    assert moment_bytes(SHAPES, "muon") == 4 * (24 + 6) + 8 * 4 + 4 * (40 + 10)
    assert checkpoint_bytes(SHAPES, "muon") == 4 * 68 + moment_bytes(SHAPES, "muon")


def test_of_a_table_muon_remembers_two_moments() -> None:
    without = moment_bytes(SHAPES, "muon")
    assert moment_bytes(SHAPES, "muon", {"dense.table"}) == without + 4 * 40
    assert moment_bytes(SHAPES, "adamw", {"dense.table"}) == moment_bytes(SHAPES, "adamw")
