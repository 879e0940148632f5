"""The converter runs as it is, but for unknown pre-tokenizers and a missing sentencepiece; the converter is made up."""

import sys
from pathlib import Path

import pytest

from lrc.export.own_process import run_module

BASE = """
class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        if tokenizer == "listed":
            return "from the list"
        raise NotImplementedError("BPE pre-tokenizer was not recognized")
"""
MAIN = """
import sys
import gguf
from sentencepiece import SentencePieceProcessor
from conversion.base import TextModel

def main():
    model = TextModel()
    lines = [gguf.WHOSE, model.get_vocab_base_pre("listed"), model.get_vocab_base_pre("unknown"), *sys.argv[1:]]
    with open("lines", "w") as stream:
        stream.write("\\n".join(lines))
"""


@pytest.fixture
def converter(tmp_path: Path) -> Path:
    folder = tmp_path / "converter"
    (folder / "conversion").mkdir(parents=True)
    (folder / "gguf-py" / "gguf").mkdir(parents=True)
    (folder / "conversion" / "__init__.py").write_text("")
    (folder / "conversion" / "base.py").write_text(BASE)
    (folder / "convert_hf_to_gguf.py").write_text(MAIN)
    (folder / "gguf-py" / "gguf" / "__init__.py").write_text("WHOSE = 'the converter\\'s own'")
    return folder


def test_own_library_own_list_then_the_given_name(tmp_path: Path, converter: Path) -> None:
    arguments = [str(converter), "smollm", "--outtype", "f32", "model"]
    assert run_module("lrc.export.gguf_runner", arguments, scratch=tmp_path) is None
    lines = (tmp_path / "lines").read_text().splitlines()
    assert lines == ["the converter's own", "from the list", "smollm", "--outtype", "f32", "model"]


def test_without_a_name_the_converter_refuses_what_it_does_not_know(tmp_path: Path, converter: Path) -> None:
    failure = run_module("lrc.export.gguf_runner", [str(converter), "none"], scratch=tmp_path)
    assert failure == "NotImplementedError: BPE pre-tokenizer was not recognized"
    assert "sentencepiece" not in sys.modules or sys.modules["sentencepiece"].SentencePieceProcessor is not None
