"""llama.cpp's own converter to GGUF, taken once from a source package into the user's cache.

llama-cpp-python's source archive carries the whole of llama.cpp, with the converter and the gguf library that belongs
to it (the one on the index is older and lacks what the converter asks for). The few files of it are kept as one
archive; nothing of it is installed, and nothing of it is part of this package.
"""

import tarfile
import zipfile
from pathlib import Path

from lrc.embedded.cache import Report, provide_folder
from lrc.embedded.packages import Sdist, fetched_archive
from lrc.errors import LrcError

CONVERTER_NAME = "converter.zip"
MAIN_MODULE = "convert_hf_to_gguf.py"

_SDIST = Sdist(
    package="llama-cpp-python",
    version="0.3.36",
    file_name="llama_cpp_python-0.3.36.tar.gz",
    num_bytes=76_589_250,
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
)
_ROOT = "vendor/llama.cpp/"
"""Folder of llama.cpp below the archive's own."""
_KEPT = ("LICENSE", MAIN_MODULE, "conversion/", "gguf-py/LICENSE", "gguf-py/gguf/")
_BUILD = "1"
"""Counts the changes of this module that change what is kept, so that older copies are made anew."""
_NEEDED_BYTES = 500_000_000
"""Source archive, and what pip unpacks of it, with a margin."""


def gguf_converter(*, report: Report = print) -> Path:
    """Return the cached archive of the converter, fetching it at the first call (77 MB, of which 0.4 MB are kept).

    Args:
        report: Receives one line a step.

    Returns:
        A zip file with `convert_hf_to_gguf.py`, the packages `conversion` and `gguf-py/gguf`, and their licence.

    Raises:
        LrcError: The package can't be fetched, is not the expected one, or the cache can't be written.
    """

    def build(folder: Path) -> None:
        with fetched_archive(_SDIST, folder, report=report) as archive:
            pack_converter(archive, folder / CONVERTER_NAME)
        report(f"llama.cpp's converter of {_SDIST.package} {_SDIST.version} (MIT) is ready.")

    origin = {"build": _BUILD, "package": f"{_SDIST.package} {_SDIST.version}", "sha256": _SDIST.sha256}
    folder = provide_folder("gguf_converter", build=build, origin=origin, needed_bytes=_NEEDED_BYTES, report=report)
    return folder / CONVERTER_NAME


def pack_converter(source_archive: Path, target: Path) -> None:
    """Copy the converter's files out of a source archive into a zip file.

    Raises:
        LrcError: The archive holds no converter.
    """
    names = set()
    with (
        tarfile.open(source_archive, "r:gz") as source,
        zipfile.ZipFile(target, "w", compression=zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in source:
            name = entry.name.partition("/")[2].removeprefix(_ROOT)
            if not (entry.isfile() and _ROOT in entry.name and name.startswith(_KEPT)):
                continue
            content = source.extractfile(entry)
            assert content is not None, name  # it is a file
            packed.writestr(name, content.read())
            names.add(name)
    if MAIN_MODULE not in names:
        raise LrcError(f"{source_archive.name} must hold {_ROOT}{MAIN_MODULE}, but does not. Please report this.")
