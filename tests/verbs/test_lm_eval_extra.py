"""A core installation without the extra `eval` says what to install."""

import pytest

from lrc.errors import ConfigError
from lrc.verbs import lm_eval_extra
from lrc.verbs.lm_eval_extra import require_lm_eval


def test_it_is_there_in_the_development_environment() -> None:
    require_lm_eval()


def test_what_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_extra, "MODULE", "no_such_library")
    with pytest.raises(ConfigError, match=r"needs no_such_library\. Install it with: pip install 'lrc\[eval\]'"):
        require_lm_eval()
