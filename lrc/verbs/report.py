"""The verb `lrc report`: from the JSON that the other verbs left in a run folder to a page, plots and facts."""

import shutil
import uuid
from pathlib import Path

from lrc.errors import DataError
from lrc.report.facts_page import facts_markdown
from lrc.report.page import page_html
from lrc.report.plots import draw_plots
from lrc.report.read_run import read_run

PAGE_NAME = "report.html"
FACTS_NAME = "README.md"


def report(run: Path) -> Path:
    """Build RUN/report: `report.html`, one PNG a plot, and `README.md`; an older report is replaced as a whole.

    Args:
        run: The run folder, with train/metrics.jsonl or evaluate/results.json at least.

    Returns:
        The page, RUN/report/report.html.

    Raises:
        DataError: There is nothing to report yet, a file of the run is damaged, or the folder can't be written.
        ConfigError: The run's recipe is not a valid one.
    """
    folder = run / "report"
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} must be a folder or not be there, but is a file. Move it away.")
    data = read_run(run)
    plots = draw_plots(data)
    files = {f"{name}.png": plot.light_png for name, plot in plots.items()}
    files[PAGE_NAME] = page_html(data, plots).encode("utf-8")
    files[FACTS_NAME] = facts_markdown(data, plots).encode("utf-8")
    try:
        _replace_folder(folder.resolve(), files)
    except OSError as error:
        raise DataError(
            f"The report must be written to {folder}, but: {error.strerror}. Free space or fix the rights there; "
            "what stood there is unchanged."
        ) from error
    return folder / PAGE_NAME


def _replace_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files into a sibling folder, then put it in the place of `folder`."""
    token = uuid.uuid4().hex[:8]
    new, old = folder.with_name(f".{folder.name}-{token}.new"), folder.with_name(f".{folder.name}-{token}.old")
    try:
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
        _swap(folder, new=new, old=old)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _swap(folder: Path, *, new: Path, old: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    # A folder that holds files can't be renamed over, so the old one steps aside first and comes back on failure.
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
