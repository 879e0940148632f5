"""A fine-tuning that is killed after one of its steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lrc.sft import fine_tune


class _Killed(Exception):
    pass


@contextmanager
def killed_after(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Expect the run inside to reach a step, and end it there."""
    step_end = fine_tune._Log.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        step_end(self, args, state, control, **trainer)
        if state.global_step == step:
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(fine_tune._Log, "on_step_end", killed)
        with pytest.raises(_Killed):
            yield
