"""The documents name only what is there: functions, files, links, recipe keys, checkpoint names."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import MISSING

from lrc.clone.sites import Variant
from lrc.config import Recipe, StudentConfig, TrainConfig, recipe_from_dict
from lrc.data_config import DataConfig, SourceConfig
from lrc.evaluation.agreement import Agreement
from lrc.models.checkpoint import checkpoint_facts, from_original
from tests.least_recipe import LEAST

ROOT = Path(__file__).parents[1]
DOCS = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "log.md")
"""All but the dated log, which may name what is gone."""
LINKING = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])

CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^(```|~~~).*?^\1[^\S\n]*$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"([\w./-]+\.py):([A-Za-z_][\w.]*)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

each_doc = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)


def prose_of(path: Path) -> str:
    """Return a document's text without fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def code_of(path: Path) -> Iterator[str]:
    """Yield what stands between single backticks."""
    yield from CODE.findall(prose_of(path))


def names_in(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    """Yield the functions, classes, methods and constants that a module or class body defines, dotted."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name
        elif isinstance(node, ast.ClassDef):
            yield prefix + node.name
            yield from names_in(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield prefix + node.target.id
        elif isinstance(node, ast.Assign):
            yield from (prefix + target.id for target in node.targets if isinstance(target, ast.Name))


def missing_places(code: Iterator[str], root: Path) -> list[str]:
    """Return the `path:function` places whose file or function is not there."""
    missing = []
    for span in code:
        place = PLACE.fullmatch(span)
        if place is None:
            continue
        path = root / place[1]
        if not path.is_file() or place[2] not in names_in(ast.parse(path.read_text(encoding="utf-8")).body):
            missing.append(span)
    return missing


def missing_files(code: Iterator[str], root: Path) -> list[str]:
    """Return the paths of this repository that are not there; what a run writes is not meant."""
    rooms = {entry.name for entry in root.iterdir() if entry.is_dir()} - {"runs"}
    missing = []
    for span in code:
        in_room = re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", span) and span.split("/")[0] in rooms
        is_command = re.fullmatch(r"\w+\.(py|toml|lock)", span)
        if (in_room or is_command) and not (root / span).exists():
            missing.append(span)
    return missing


def anchor_of(heading: str) -> str:
    """Return the anchor that a heading gets on the repository's site."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken_links(path: Path) -> list[str]:
    """Return the relative links whose file or heading is not there."""
    broken = []
    for link in LINK.findall(prose_of(path)):
        if re.match(r"[a-z]+:", link):
            continue
        file_name, _, anchor = link.partition("#")
        target = path.parent / file_name if file_name else path
        if not target.exists() or (anchor and anchor not in map(anchor_of, HEADING.findall(prose_of(target)))):
            broken.append(link)
    return broken


def table_rows(path: Path, first_column: str) -> list[list[str]]:
    """Return the cells of the first table whose heading begins so; a bar behind a backslash is within a cell."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def keys_after(path: Path, marker: str) -> set[str]:
    """Return the keys of the first table after a marker."""
    text = path.read_text(encoding="utf-8")
    tail = text[text.index(marker) + len(marker) :]
    rows = tail[tail.index("| --- |") :].split("\n\n")[0].splitlines()[1:]
    return {CODE.findall(row)[0] for row in rows}


@each_doc
def test_named_functions_exist(path: Path) -> None:
    assert missing_places(code_of(path), ROOT) == []


@each_doc
def test_named_files_exist(path: Path) -> None:
    assert missing_files(code_of(path), ROOT) == []


@pytest.mark.parametrize("path", LINKING, ids=lambda path: path.name)
def test_relative_links_resolve(path: Path) -> None:
    assert broken_links(path) == []


def test_method_names_the_code_of_each_formula() -> None:
    assert len([span for span in code_of(ROOT / "docs/method.md") if PLACE.fullmatch(span)]) > 30


def test_the_checks_find_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "lrc").mkdir()
    (tmp_path / "lrc/a.py").write_text("B: int = 1\n\n\nclass C:\n    def d(self) -> None: ...\n")
    code = ["lrc/a.py:B", "lrc/a.py:C.d", "lrc/a.py:d", "lrc/b.py:B", "lrc/a.py", "lrc/b.py", "run.py", "a/b", "x = 1"]
    assert missing_places(iter(code), tmp_path) == ["lrc/a.py:d", "lrc/b.py:B"]
    assert missing_files(iter(code), tmp_path) == ["lrc/b.py", "run.py"]
    page = tmp_path / "page.md"
    page.write_text(
        "# A: `b`\n[1](#a-b) [2](#c) [3](lrc/a.py) [4](no.md) [5](https://x.y/z)\n```\n[6](no.md)\n# C\n```\n"
    )
    assert broken_links(page) == ["#c", "no.md"]


def recipe_defaults(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key of the recipe with its default as the table shows it."""
    for entry in dataclasses.fields(section):
        if dataclasses.is_dataclass(entry.type):
            yield from recipe_defaults(entry.type, f"{prefix}{entry.name}.")
            continue
        made = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        default = list(made) if isinstance(made, tuple) else made
        shown = yaml.safe_dump(default).splitlines()[0] if not isinstance(default, float) else str(default)
        yield f"{prefix}{entry.name}", "required" if default == MISSING else f"`{shown}`"


def test_recipe_table_lists_every_key_with_its_default() -> None:
    rows = [(row[0].strip("`"), row[1]) for row in table_rows(ROOT / "docs/formats.md", "key")]
    assert rows == list(recipe_defaults(Recipe))
    sources = [(row[0].strip("`"), row[1]) for row in table_rows(ROOT / "docs/formats.md", "key of a source")]
    assert sources == list(recipe_defaults(SourceConfig))


def test_the_recipes_of_the_data_guide_load() -> None:
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert len(blocks) == 2
    for block in blocks:
        values = {**LEAST, **block, "data": {**LEAST["data"], **block.get("data", {})}}
        recipe_from_dict(values, origin="docs/data.md")


def test_checkpoint_facts_and_held_out_measures_are_listed() -> None:
    formats = ROOT / "docs/formats.md"
    recipe = Recipe(
        run="r",
        teacher="t",
        student=StudentConfig(hidden_size=2),
        data=DataConfig(train="d"),
        train=TrainConfig(max_steps=1),
    )
    facts = checkpoint_facts(recipe, teacher_hash="h", d_teacher=3, compute_dtype="float32")
    assert keys_after(formats, "`lrc_config.json` (`lrc/models/checkpoint.py:checkpoint_facts`)") == set(facts)
    assert keys_after(formats, "### Held-out measures") == set(Agreement().summary())
    ranks = {"effective_rank", "teacher_effective_rank", "effective_rank_share", "has_collapsed"}
    assert keys_after(formats, "### Effective rank") == ranks


def test_original_names_are_read_as_listed() -> None:
    for original, stored, ours in table_rows(ROOT / "docs/formats.md", "original name"):
        name, expected = CODE.findall(original)[0].replace("N", "3"), CODE.findall(ours)[0].replace("N", "3")
        variant = Variant(
            attention_projections="io" if "io attention" in original else "all",
            ffn_projections="io" if "io ffn" in original else "all",
        )
        shapes = {"$[d_S, d_T]$": (2, 5), "$[d_T, d_S]$": (5, 2), "$[d_S]$": (2,)}
        translated, ignored = from_original({f"module.{name}": torch.zeros(shapes[stored])}, variant)
        assert ignored == []
        assert {key: tuple(value.shape) for key, value in translated.items()} == {
            expected: (2,) if stored == "$[d_S]$" else (5, 2)
        }
