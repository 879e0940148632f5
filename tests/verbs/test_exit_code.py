"""How commands end: what is explained is one line and a code, what is a defect is the caller's."""

import sys

import pytest
import torch

from lrc.errors import ConfigError
from lrc.verbs.exit_code import run_for_exit_code
from lrc.verbs.published_flags import run_command

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1 is free."


def failing(error: BaseException) -> None:
    raise error


def test_a_gpu_that_is_too_small_is_one_line_with_the_remedies(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_for_exit_code(lambda: failing(torch.OutOfMemoryError(FULL)), prefix="lrc: ") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("lrc: error: the GPU's memory is too small: CUDA out of memory. Tried to allocate 2.00 GiB.")
    for remedy in ("batch_size", "gradient_accumulation_steps", "activation_checkpointing", "train.strategy"):
        assert remedy in line
    assert "79.10" not in line


def test_a_command_that_has_not_imported_torch_does_not_do_so_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ZeroDivisionError):
        run_for_exit_code(lambda: failing(ZeroDivisionError()))
    assert "torch" not in sys.modules


@pytest.mark.parametrize("error", [ConfigError("must be 3"), torch.OutOfMemoryError(FULL)])
def test_the_published_commands_show_tracebacks_where_debugging_is_asked_for_too(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_command(lambda: failing(error))
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("LRC_DEBUG", "1")
    run_command(lambda: failing(error))
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last)")
    assert said.splitlines()[-1].startswith("error: ")
