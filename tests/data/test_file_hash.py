"""The hash of a file."""

import hashlib
from pathlib import Path

from lrc.data.file_hash import file_sha256


def test_a_file_longer_than_a_piece_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(data)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
