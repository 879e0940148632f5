"""Modules run in a process of their own; their failures come back in a line."""

from pathlib import Path

import pytest

from lrc.export.own_process import run_module


def test_module_of_this_package_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert run_module("lrc.errors", [], scratch=tmp_path) is None


def test_last_error_of_a_traceback_is_the_reason_even_if_lines_follow(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "import atexit, sys\n"
        "atexit.register(lambda: print('closing down', file=sys.stderr))\n"
        "print('0.1 E load: no such tensor', file=sys.stderr, flush=True)\n"
        "raise ValueError('what went wrong')\n"
    )
    assert run_module("failing", [], scratch=tmp_path) == "load: no such tensor; ValueError: what went wrong"


def test_process_that_aborts_or_says_nothing_is_a_failure_too(tmp_path: Path) -> None:
    (tmp_path / "aborting.py").write_text("print('GGML_ASSERT(n > 0) failed', flush=True)\nimport os\nos.abort()\n")
    assert run_module("aborting", [], scratch=tmp_path) == "GGML_ASSERT(n > 0) failed"
    (tmp_path / "silent.py").write_text("raise SystemExit(3)\n")
    assert run_module("silent", [], scratch=tmp_path) == "exit code 3 and no output"
