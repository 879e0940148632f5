"""A licence is read from a folder's own files, never guessed."""

from pathlib import Path

import pytest

from lrc.report.licence import Licence, front_matter, read_licence

APACHE = "\n                                 Apache License\n                           Version 2.0, January 2004\n"
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
        ("LICENSE.txt", MIT, Licence(id="mit", found_in="LICENSE.txt")),
        ("LICENSE", f"The {MIT}", Licence(id="mit", found_in="LICENSE")),
        ("LICENSE", f"{MIT}\nUnless you have 100 users.", Licence(id="other", name="LICENSE", found_in="LICENSE")),
        ("LICENSE", MIT.replace("sell", "lend"), Licence(id="other", name="LICENSE", found_in="LICENSE")),
        ("LICENSE", f"Modified {MIT}", Licence(id="other", name="LICENSE", found_in="LICENSE")),
        ("LICENSE", f"My terms; parts are under:\n{APACHE}", Licence(id="other", name="LICENSE", found_in="LICENSE")),
        ("LICENSE", "All mine.", Licence(id="other", name="LICENSE", found_in="LICENSE")),
    ],
)
def test_else_the_text_of_the_licence_tells(tmp_path: Path, name: str, text: str, wanted: Licence) -> None:
    (tmp_path / name).write_text(text)
    assert read_licence(tmp_path) == wanted


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
