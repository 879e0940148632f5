"""The encoder gives what the tokenizer gives, with the boundary tokens, and opens without transformers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from lrc.data.encoder import Encoder, open_encoder, save_encoder, with_boundaries
from tests.data.raw_sources import byte_tokenizer


def test_documents_come_end_to_end_with_their_lengths(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer(tmp_path / "tokenizer"))
    save_encoder(tokenizer, tmp_path / "tokenizer", tmp_path)
    texts = ["one", "", "<s>three</s>", "vier é"]
    ids, lengths = open_encoder(tmp_path).encode(texts)
    expected = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    expected[2] = expected[2][1:-1]  # the text has its own marks
    assert [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] == expected


def test_the_tokenizers_truncation_is_left_out(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer(tmp_path / "tokenizer"))
    tokenizer.backend_tokenizer.enable_truncation(max_length=2)
    save_encoder(tokenizer, tmp_path / "tokenizer", tmp_path)
    assert open_encoder(tmp_path).encode(["much longer"]).lengths.tolist() == [13]


def test_another_tokenizer_in_the_same_place_is_opened_anew(tmp_path: Path) -> None:
    for eos, length in ((True, 3), (False, 2)):
        folder = byte_tokenizer(tmp_path / f"tokenizer-{eos}", eos=eos)
        save_encoder(AutoTokenizer.from_pretrained(folder), folder, tmp_path)
        assert open_encoder(tmp_path).encode(["a"]).lengths.tolist() == [length]


def test_a_worker_does_not_import_transformers_or_torch(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path / "tokenizer")
    save_encoder(AutoTokenizer.from_pretrained(folder), folder, tmp_path)
    code = "\n".join(
        (
            "import sys, pathlib, lrc.data.prepare_task",
            f"lrc.data.prepare_task.open_encoder(pathlib.Path({str(tmp_path)!r})).encode(['a'])",
            "print('torch' in sys.modules, 'transformers' in sys.modules)",
        )
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize(
    ("ids", "bos", "eos", "expected"),
    [
        ([5, 6], 1, 2, [1, 5, 6, 2]),
        ([1, 5, 2], 1, 2, [1, 5, 2]),
        ([5], None, 2, [5, 2]),
        ([5], 1, None, [1, 5]),
        ([], 1, 2, [1, 2]),
    ],
)
def test_boundary_tokens_stand_once_on_each_side(
    ids: list[int], bos: int | None, eos: int | None, expected: list[int]
) -> None:
    assert with_boundaries(ids, bos, eos) == expected


DATED = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}: {{ messages[0]['content'] }}"
CHATML = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"


def encoder_with(root: Path, template: str) -> Encoder:
    tokenizer = AutoTokenizer.from_pretrained(byte_tokenizer(root / "tokenizer"))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(root / "tokenizer")
    save_encoder(tokenizer, root / "tokenizer", root)
    return open_encoder(root)


def test_the_day_does_not_change_a_chat(tmp_path: Path) -> None:
    text = encoder_with(tmp_path, DATED).chat_text([{"role": "user", "content": "Hi"}])
    assert text == "26 Jul 2024: Hi"


@pytest.mark.parametrize(("added", "ended"), [("", True), ("\n\n", True), ("x", False)])
def test_a_chat_that_its_template_has_ended_is_not_ended_again(tmp_path: Path, added: str, ended: bool) -> None:
    encoder = encoder_with(tmp_path, CHATML)
    text = encoder.chat_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]) + added
    (ids, _), eos = encoder.encode([text]), encoder.facts["eos"]
    assert ids.tolist().count(eos) == (2 if ended else 3)
    assert (ids[-1] == eos) is not ended


def test_the_folder_of_the_tokenizer_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = byte_tokenizer(tmp_path / "tokenizer")
    monkeypatch.chdir(tmp_path)
    save_encoder(AutoTokenizer.from_pretrained(folder), Path("tokenizer"), tmp_path)
    assert Encoder(tmp_path).facts["tokenizer_folder"] == str(folder)
