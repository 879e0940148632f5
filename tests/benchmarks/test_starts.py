"""The file of a cell's start: shared by what begins alike, another one for what does not."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.arena.cells import parse_cell
from benchmarks.arena.methods import methods
from benchmarks.arena.starts import SOURCES, source_hash, start_file
from lrc.config import Recipe
from tests.benchmarks.test_cells import recipe_of
from tests.tiny import teacher_folder

BASE = "smollm2/half/default/60k/seed0"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher_folder(tmp_path_factory.mktemp("teacher"))


def file_of(recipe: Recipe, teacher: Path, *, text: str = "a") -> Path | None:
    fixed = replace(recipe, train=replace(recipe.train, compute_dtype="float32", device="cpu"))
    return start_file(Path("starts"), fixed, teacher=teacher, train_sha256=text)


@pytest.mark.parametrize(
    "cell",
    [
        "temperature-4/60k/seed0",
        "clone-weight-3/60k/seed0",
        "adamw-0.001/60k/seed0",
        "dense/60k/seed0",
        "default/1m/seed0",
    ],
)
def test_objective_optimiser_and_length_share_a_start(cell: str, teacher: Path) -> None:
    base = file_of(recipe_of(BASE), teacher)
    assert base is not None
    assert base.parent == Path("starts")
    assert base.name.startswith("calibrated-")
    assert file_of(recipe_of(f"smollm2/half/{cell}"), teacher) == base


def test_whatever_a_start_follows_from_makes_another_file(teacher: Path, tmp_path: Path) -> None:
    recipe = recipe_of(BASE)
    cells = (
        "third/default/60k/seed0",
        "half/default/60k/seed1",
        "half/red/60k/seed0",
        "half/calibration-4096/60k/seed0",
    )
    more = ("half/outliers-8/60k/seed0", "half/tied/60k/seed0", "half/io/60k/seed0", "half/start-pca/60k/seed0")
    others = [recipe_of(f"smollm2/{cell}") for cell in (*cells, *more)]
    others.append(replace(recipe, data=replace(recipe.data, sequence_length=128)))
    files = [file_of(recipe, teacher), *(file_of(other, teacher) for other in others)]
    files += [file_of(recipe, teacher, text="b"), file_of(recipe, teacher_folder(tmp_path, seed=1))]
    bfloat16 = replace(recipe, train=replace(recipe.train, compute_dtype="bfloat16", device="cpu"))
    files.append(start_file(Path("starts"), bfloat16, teacher=teacher, train_sha256="a"))
    assert None not in files
    assert len(set(files)) == len(files)


def test_a_start_that_reads_no_text_needs_no_file(teacher: Path) -> None:
    without = {name for name in methods() if file_of(recipe_of(f"smollm2/half/{name}/60k/seed0"), teacher) is None}
    assert without == {"published", "published-long", "origin", "only-kd", "tiny-bert"}
    assert parse_cell(BASE).method not in without


def test_changed_code_makes_another_file(tmp_path: Path) -> None:
    for place in SOURCES:
        path = tmp_path / (place if place.endswith(".py") else f"{place}/a.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("A = 1\n")
    before = source_hash(tmp_path)
    (tmp_path / "report.py").write_text("A = 2\n")
    assert source_hash(tmp_path) == before
    (tmp_path / "models" / "a.py").write_text("A = 2\n")
    assert source_hash(tmp_path) != before
