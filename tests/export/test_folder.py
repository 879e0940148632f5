"""A written folder is there whole or not at all, whatever fails on the way."""

from pathlib import Path

import pytest
from safetensors import SafetensorError

from lrc.errors import CheckpointError, ConfigError, NumericsError
from lrc.export import gguf, int8
from lrc.export.folder import PRODUCTS, check_target, written_folder
from lrc.sft.llama_factory import DATASETS, SETTINGS
from lrc.sft_config import SFT_FACTS

MARK = "parity.json"
"""Tells a folder as one of lrc's."""


def files_below(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder that holds earlier work."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / MARK).write_text("old")
    return folder


def fill(out: Path, *, overwrite: bool = False, failure: BaseException | None = None) -> None:
    with written_folder(out, overwrite=overwrite) as draft:
        (draft / "new.txt").write_text("new")
        (draft / "inner").mkdir()
        (draft / "inner" / "deep.txt").write_text("deep")
        if failure is not None:
            raise failure


def test_the_draft_lies_beside_its_place_and_becomes_it(tmp_path: Path) -> None:
    out = tmp_path / "not" / "there" / "out"
    with written_folder(out, overwrite=False) as draft:
        assert draft.parent == out.parent
        assert list(draft.iterdir()) == []
        assert not out.exists()
        (draft / "new.txt").write_text("new")
    assert files_below(tmp_path) == {"not/there/out/new.txt": "new"}
    assert list(out.parent.iterdir()) == [out]


def test_an_empty_folder_is_filled_unasked(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out")
    assert files_below(tmp_path) == {"out/new.txt": "new", "out/inner/deep.txt": "deep"}


def test_overwriting_replaces_the_whole_folder(out: Path) -> None:
    with written_folder(out, overwrite=True) as draft:
        (draft / "new.txt").write_text("new")
        assert files_below(out) == {MARK: "old"}
    assert files_below(out.parent) == {"out/new.txt": "new"}
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_that_holds_something_is_refused_before_the_work(out: Path) -> None:
    with pytest.raises(ConfigError, match=r"not empty.*--overwrite"):
        check_target(out, overwrite=False)
    with pytest.raises(ConfigError, match="--overwrite"):
        fill(out)
    assert files_below(out.parent) == {f"out/{MARK}": "old"}
    check_target(out, overwrite=True)


def test_the_marks_are_what_the_verbs_write() -> None:
    marks = [{"parity.json"}, {gguf.PARITY_NAME}, {int8.PARITY_NAME}, {SFT_FACTS}, {SETTINGS, DATASETS}]
    assert [set(product) for product in PRODUCTS] == marks


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda names: ", ".join(sorted(names)))
def test_what_lrc_has_written_is_replaced(tmp_path: Path, product: frozenset[str]) -> None:
    for name in (*product, "model.safetensors"):
        (tmp_path / name).write_text("")
    check_target(tmp_path, overwrite=True)
    with pytest.raises(ConfigError, match=r"Use --overwrite to replace it"):
        check_target(tmp_path, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("names", [["a", "b", "c", "d"], ["sft.yaml", "x"], ["config.json", "model.safetensors"]])
def test_what_somebody_else_has_written_is_never_replaced(tmp_path: Path, names: list[str], overwrite: bool) -> None:
    for name in names:
        (tmp_path / name).write_text("mine")
    listed = ", ".join(names[:3]) + (" and 1 more" if names[3:] else "")
    with pytest.raises(ConfigError, match=f"holds {listed}, but nothing .* not even --overwrite replaces it"):
        check_target(tmp_path, overwrite=overwrite)
    with pytest.raises(ConfigError, match="Name another folder"):
        fill(tmp_path, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_folder_inside_what_lrc_has_written_is_not_deleted_with_it(out: Path) -> None:
    (out / ".cache").mkdir()
    (out / "__pycache__").mkdir()
    check_target(out, overwrite=True)
    (out / "student").mkdir()  # as LLaMA-Factory trains it beside the files that lrc sft wrote
    with pytest.raises(ConfigError, match=r"holds the folder student, .* not even --overwrite replaces it"):
        fill(out, overwrite=True)
    assert (out / "student").is_dir()


@pytest.mark.parametrize("name", [".", "run", "run/convert", "link", "run/../run"])
def test_a_target_that_is_or_holds_an_input_is_refused(tmp_path: Path, name: str) -> None:
    student = tmp_path / "run" / "convert"
    student.mkdir(parents=True)
    (tmp_path / "link").symlink_to(student)
    with pytest.raises(ConfigError, match="must not be or hold what is read"):
        check_target(tmp_path / name, overwrite=True, inputs=[tmp_path / "other", student])


def test_a_target_beside_or_below_an_input_is_taken(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    for name in ("out", "student2", "student/llama"):
        check_target(tmp_path / name, overwrite=True, inputs=[tmp_path / "student", Path("owner/name")])


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_target(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match=r"must be a folder.*is a file"):
        check_target(tmp_path / "out", overwrite=overwrite)
    with pytest.raises(ConfigError, match="must be a folder"):
        fill(tmp_path / "out", overwrite=overwrite)
    assert files_below(tmp_path) == {"out": "mine"}


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="can't be written"):
        fill(tmp_path / "file" / "out")
    assert files_below(tmp_path) == {"file": "mine"}


@pytest.mark.parametrize("failure", [NumericsError("not equal"), KeyboardInterrupt(), ZeroDivisionError()])
def test_any_failure_leaves_the_old_folder_whole_and_no_draft(out: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)) as caught:
        fill(out, overwrite=True, failure=failure)
    assert caught.value is failure
    assert files_below(out.parent) == {f"out/{MARK}": "old"}
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), SafetensorError("os error 28")])
def test_a_failed_write_is_explained(out: Path, failure: Exception) -> None:
    with pytest.raises(CheckpointError) as caught:
        fill(out, overwrite=True, failure=failure)
    assert f"{out} can't be written: {failure}." in str(caught.value)
    assert caught.value.__cause__ is failure
    assert files_below(out.parent) == {f"out/{MARK}": "old"}


def test_what_a_killed_call_left_is_no_part_of_the_next(out: Path) -> None:
    for leftover in (".out.partial", ".out.old"):
        (out.parent / leftover).mkdir()
        (out.parent / leftover / "stale.txt").write_text("stale")
    fill(out, overwrite=True)
    assert files_below(out.parent) == {"out/new.txt": "new", "out/inner/deep.txt": "deep"}


def test_the_old_folder_comes_back_if_the_draft_cannot_take_its_place(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuse_the_draft(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_draft)
    with pytest.raises(CheckpointError, match="untouched"):
        fill(out, overwrite=True)
    assert files_below(out.parent) == {f"out/{MARK}": "old"}


def test_the_current_folder_can_be_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    fill(Path("."))
    assert files_below(tmp_path) == {"out/new.txt": "new", "out/inner/deep.txt": "deep"}


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "big_disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "big_disk")
    for _ in range(2):
        with written_folder(tmp_path / "out", overwrite=True) as draft:
            (draft / MARK).write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "big_disk" / MARK).read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"big_disk", "out"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_kill_between_the_renames_has_set_aside_is_put_back(out: Path, overwrite: bool) -> None:
    out.rename(out.with_name(".out.old"))
    with pytest.raises(NumericsError if overwrite else ConfigError, match=r"not equal|not empty.*Use --overwrite"):
        fill(out, overwrite=overwrite, failure=NumericsError("not equal"))
    assert files_below(out.parent) == {f"out/{MARK}": "old"}
