"""The table of docs/families.md is the outcome of the oracles; `LRC_WRITE_FAMILIES=1` writes it anew."""

import os
from pathlib import Path

import pytest
import torch
import transformers

from lrc.models.discovery import discover
from lrc.models.oddities import oddities
from lrc.models.oracles import run_oracles
from lrc.models.teacher import load_model
from lrc.models.tiny import random_model
from tests.models.composite_configs import COMPOSITES, random_composite
from tests.models.family_configs import FAMILY_CONFIGS
from tests.models.test_unlisted_families import make_config, picked, refusal_of

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
LOCK = Path(__file__).parents[2] / "requirements.lock"
FAMILIES = ("<!-- families: made by tests/models/test_families_table.py -->", "<!-- end of families -->")
COMPOSITE = ("<!-- composites: made by tests/models/test_families_table.py -->", "<!-- end of composites -->")
UNLISTED = ("<!-- unlisted: made by tests/models/test_families_table.py -->", "<!-- end of unlisted -->")


def family_rows() -> str:
    """Run every oracle on every promised family's tiny random model."""
    rows = []
    for family, make in FAMILY_CONFIGS.items():
        config = make()
        results = run_oracles(random_model(config))
        if not rows:
            rows += [f"| family | {' | '.join(result.name for result in results)} | odd |", "| --- " * 8 + "|"]
        odd = "; ".join(line.partition(" (")[0] for line in oddities(discover(config), config)) or "nothing"
        rows.append(f"| {family} | {' | '.join('yes' if result.passed else 'NO' for result in results)} | {odd} |")
    return "\n".join(rows)


def composite_rows(folder: Path) -> str:
    """Load every composite's text tower, measure it against the whole, and run every oracle on it."""
    ids = torch.randint(3, 47, (2, 9), generator=torch.Generator().manual_seed(5))
    rows = ["| teacher | student's class | logits of the tower = of the whole, on text | oracles |", "| --- " * 4 + "|"]
    for name in COMPOSITES:
        whole = random_composite(name)
        whole.save_pretrained(folder / name)
        tower = load_model(str(folder / name), dtype=torch.float32, device=torch.device("cpu"))
        with torch.no_grad():
            equal = torch.allclose(tower(ids).logits, whole(input_ids=ids).logits, atol=1e-5, rtol=0)
        passed = all(result.passed for result in run_oracles(tower))
        cells = (name, type(tower).__name__, "within 1e-5" if equal else "NO", "all pass" if passed else "NO")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def unlisted_rows() -> str:
    """Say what became of the classes that the seed picked."""
    rows = ["| class | outcome |", "| --- | --- |"]
    for name in picked():
        refusal = refusal_of(make_config(name))
        rows.append(f"| {name} | {'passes every oracle' if refusal is None else f'refused: {refusal}'} |")
    return "\n".join(rows)


def with_section(page: str, marks: tuple[str, str], rows: str) -> str:
    before, _, rest = page.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    return f"{before}{marks[0]}\n{rows}\n{marks[1]}{after}"


def is_locked_version() -> bool:
    """Whether the installed transformers is the one that the page's list of unlisted classes was made with."""
    return f"transformers=={transformers.__version__}" in LOCK.read_text(encoding="utf-8").splitlines()


def assert_section_is(marks: tuple[str, str], rows: str) -> None:
    made = with_section(PAGE.read_text(encoding="utf-8"), marks, rows)
    if os.environ.get("LRC_WRITE_FAMILIES"):
        PAGE.write_text(made, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == made


@pytest.mark.filterwarnings("ignore")
def test_the_promised_families_pass_every_oracle_and_the_page_says_so() -> None:
    rows = family_rows()
    assert "NO" not in rows.split()
    assert_section_is(FAMILIES, rows)


@pytest.mark.filterwarnings("ignore")
def test_the_page_says_which_composites_text_towers_are_proven(tmp_path: Path) -> None:
    rows = composite_rows(tmp_path)
    assert "NO" not in rows.split()
    assert_section_is(COMPOSITE, rows)


@pytest.mark.skipif(not is_locked_version(), reason="another transformers has other classes to pick from")
@pytest.mark.filterwarnings("ignore")
def test_the_page_says_what_became_of_the_picked_classes() -> None:
    assert_section_is(UNLISTED, unlisted_rows())
