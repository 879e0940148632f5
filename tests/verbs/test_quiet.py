"""Only the named notes are held back."""

import logging

import pytest

from lrc.verbs.quiet import NOTES, quiet_imports


@pytest.mark.parametrize("name", NOTES)
def test_a_note_is_held_back_and_anything_else_is_shown(name: str, caplog: pytest.LogCaptureFixture) -> None:
    quiet_imports()
    quiet_imports()
    logger = logging.getLogger(name)
    assert len([known for known in logger.filters if type(known).__module__ == "lrc.verbs.quiet"]) == 1
    logger.addHandler(caplog.handler)
    try:
        logger.warning("%s this one", NOTES[name])
        logger.warning("something is really wrong")
    finally:
        logger.removeHandler(caplog.handler)
    assert "something is really wrong" in caplog.text
    assert "this one" not in caplog.text
