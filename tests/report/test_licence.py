"""A licence is read from a folder's own files, never guessed."""

from pathlib import Path

import pytest

from lrc.report.licence import Licence, front_matter, read_licence

APACHE = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
APACHE_TERMS = APACHE.partition("   APPENDIX")[0]
FILLED = APACHE.replace("[yyyy] [name of copyright owner]", "2024 The Authors, Inc.").replace("http:", "https:")
OTHER = Licence(id="other", name="LICENSE", found_in="LICENSE")
MIT_BODY = """
Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
MIT = f"MIT License\n\nCopyright (c) 2024 The Authors\n{MIT_BODY}"


def test_the_card_of_the_teacher_comes_first(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: llama3.2\nlanguage: en\n---\n# Model\nlicense: mit\n")
    (tmp_path / "LICENSE").write_text(APACHE)
    assert read_licence(tmp_path) == Licence(id="llama3.2", found_in="README.md")


def test_another_licence_keeps_its_name_and_link(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n")
    assert read_licence(tmp_path) == Licence(id="other", name="own", link="LICENSE", found_in="README.md")


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("LICENSE", APACHE, Licence(id="apache-2.0", found_in="LICENSE")),
        ("LICENSE", APACHE_TERMS, Licence(id="apache-2.0", found_in="LICENSE")),
        ("LICENSE", FILLED, Licence(id="apache-2.0", found_in="LICENSE")),
        ("LICENSE", f"{APACHE}\nUnless you have 100 users.", OTHER),
        ("LICENSE", f"{APACHE_TERMS}\nUnless you have 100 users.", OTHER),
        ("LICENSE", APACHE.replace("royalty-free, ", ""), OTHER),
        ("LICENSE", APACHE[:2000], OTHER),
        ("LICENSE.txt", MIT, Licence(id="mit", found_in="LICENSE.txt")),
        ("LICENSE", f"The {MIT}", Licence(id="mit", found_in="LICENSE")),
        ("LICENSE", f"{MIT}\nUnless you have 100 users.", Licence(id="other", name="LICENSE", found_in="LICENSE")),
        ("LICENSE", MIT.replace("sell", "lend"), Licence(id="other", name="LICENSE", found_in="LICENSE")),
        ("LICENSE", f"Modified {MIT}", Licence(id="other", name="LICENSE", found_in="LICENSE")),
        ("LICENSE", f"My terms; parts are under:\n{APACHE}", Licence(id="other", name="LICENSE", found_in="LICENSE")),
        ("LICENSE", "All mine.", Licence(id="other", name="LICENSE", found_in="LICENSE")),
    ],
    ids=lambda value: str(value).strip()[:20],
)
def test_else_the_text_of_the_licence_tells(tmp_path: Path, name: str, text: str, wanted: Licence) -> None:
    (tmp_path / name).write_text(text)
    assert read_licence(tmp_path) == wanted


def test_several_licences_count_if_they_agree(tmp_path: Path) -> None:
    (tmp_path / "LICENSES").mkdir()
    (tmp_path / "LICENSE-CODE").write_text(MIT)
    (tmp_path / "LICENSE-MODEL").write_text(MIT)
    names = "LICENSE-CODE, LICENSE-MODEL"
    assert read_licence(tmp_path) == Licence(id="mit", found_in=names)
    for other in ("All mine.", APACHE):
        (tmp_path / "LICENSE-MODEL").write_text(other)
        assert read_licence(tmp_path) == Licence(id="other", name=names, found_in=names)


@pytest.mark.parametrize(
    "card", [None, "# No front matter\n", "---\nlicense: [\n---\n", "---\nlicense: 3\n---\n", "---\n- a\n---\n"]
)
def test_what_no_file_says_is_unknown(tmp_path: Path, card: str | None) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert read_licence(tmp_path) == Licence(id="unknown")
    assert read_licence(None) == Licence(id="unknown")


def test_a_front_matter_ends_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\r\na: 1\r\n---\r\nb: 2\r\n---\r\n")
    assert front_matter(tmp_path / "README.md") == {"a": 1}
