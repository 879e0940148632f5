"""The four texts: read from a folder of corpora, apart from each other, in one order, the same for every cell."""

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.arena.texts import ROLES, docstrings, prepare_texts
from lrc.errors import DataError


def corpora(folder: Path, **changes: list[str]) -> Path:
    """Write a folder of corpora, one of them packed."""
    folder.mkdir(parents=True)
    for role in ROLES:
        texts = changes.get(role, [f"{role} document {number}" for number in range(20)])
        lines = "".join(
            json.dumps({"page" if role == "fresh" else "text": text, "source": "x"}) + "\n" for text in texts
        )
        if role == "train":
            (folder / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        else:
            (folder / f"{role}.jsonl").write_text(lines)
    return folder


def read(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_a_folder_of_corpora_becomes_four_files_in_an_order_of_their_own(tmp_path: Path) -> None:
    texts = prepare_texts(tmp_path / "out", data=corpora(tmp_path / "in"), train_bytes=10**6)
    for role in ROLES:
        assert sorted(read(texts.paths[role])) == sorted(f"{role} document {number}" for number in range(20))
        assert read(texts.paths[role]) != [f"{role} document {number}" for number in range(20)]
    again = prepare_texts(tmp_path / "other", data=tmp_path / "in", train_bytes=10**6)
    assert again.sha256 == texts.sha256
    assert len(set(texts.sha256.values())) == 4


def test_less_text_is_the_front_of_more(tmp_path: Path) -> None:
    folder = corpora(tmp_path / "in")
    less, more = (prepare_texts(tmp_path / "out", data=folder, train_bytes=size) for size in (60, 10**6))
    assert read(less.paths["train"]) == read(more.paths["train"])[:4]
    assert less.sha256["held_out"] == more.sha256["held_out"]


def test_a_wikitext_page_is_read_without_its_marks(tmp_path: Path) -> None:
    folder = corpora(tmp_path / "in", fresh=["a two @-@ part page , with 1 @,@ 500 words ( about )"])
    texts = prepare_texts(tmp_path / "out", data=folder, train_bytes=10**6)
    assert read(texts.paths["fresh"]) == ["a two-part page, with 1,500 words (about)"]


def test_a_document_in_two_texts_is_refused(tmp_path: Path) -> None:
    folder = corpora(tmp_path / "in", fresh=["fresh one", "train document 3"])
    with pytest.raises(DataError, match="train and fresh share the document 'train document 3'"):
        prepare_texts(tmp_path / "out", data=folder, train_bytes=10**6)
    assert not (tmp_path / "out").exists()


def test_a_missing_text_and_a_row_without_text_are_named(tmp_path: Path) -> None:
    folder = corpora(tmp_path / "in")
    (folder / "held_out.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(
        DataError, match=r"held_out\.jsonl:1: a row must have its text in text or page, found \['body'\]"
    ):
        prepare_texts(tmp_path / "out", data=folder, train_bytes=10**6)
    (folder / "held_out.jsonl").unlink()
    with pytest.raises(DataError, match=r"must hold the held_out text as held_out\.jsonl"):
        prepare_texts(tmp_path / "out", data=folder, train_bytes=10**6)


def test_python_itself_has_enough_for_the_quick_version(tmp_path: Path) -> None:
    texts = prepare_texts(tmp_path, data=None, train_bytes=200_000, is_tiny=True)
    sizes = {role: path.stat().st_size for role, path in texts.paths.items()}
    assert sizes["train"] > 100_000
    assert min(sizes.values()) > 10_000
    assert texts.origin == "python"
    assert all(len(text) > 150 for text in docstrings(("argparse",)))
