"""llama.cpp's answers, read from what its process leaves; the process is made up here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lrc.errors import NumericsError
from lrc.export import llama_cpp
from lrc.export.llama_cpp import ask_llama_cpp


def test_answers_are_normalised_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []

    def run(module: str, arguments: list[str], *, scratch: Path) -> None:
        jobs.append(json.loads(Path(arguments[0]).read_text()))
        exact = np.log([[0.5, 0.25, 0.25]])
        np.save(scratch / "log_probabilities.npy", exact + 1e-4)  # as a sum in float32 is off
        (scratch / "answers.json").write_text('{"tokens": [[1, 2]], "chats": ["Paris."]}')

    monkeypatch.setattr(llama_cpp, "run_module", run)
    chat = [{"role": "user", "content": "Where?"}]
    answers = ask_llama_cpp(tmp_path / "m.gguf", vocab_size=3, sequences=[[1, 2]], texts=["ab"], chats=[chat])
    expected = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    torch.testing.assert_close(answers.log_probabilities, expected, atol=1e-12, rtol=0)
    assert (answers.tokens, answers.chats) == ([[1, 2]], ["Paris."])
    assert jobs[0]["model"] == str(tmp_path / "m.gguf")
    assert (jobs[0]["sequences"], jobs[0]["texts"], jobs[0]["chats"]) == ([[1, 2]], ["ab"], [chat])


def test_file_that_llama_cpp_does_not_take_is_an_error_with_its_reason(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    (tmp_path / "broken.gguf").write_bytes(b"no GGUF file")
    with pytest.raises(NumericsError, match=r"must load and run broken\.gguf, but ended with: .*gguf.*RuntimeError"):
        ask_llama_cpp(tmp_path / "broken.gguf")
