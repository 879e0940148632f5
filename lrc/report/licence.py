"""The licence of a model folder, from what lies in it; nothing is fetched and nothing is guessed from a name."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

UNKNOWN = "unknown"
"""The hub's own word for a licence that nobody has looked up."""
APACHE_BEGINS = "Apache License Version 2.0, January 2004"
MIT_BEGINS = ("MIT License", "The MIT License")
MIT_ENDS = """
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright notice and
this permission notice shall be included in all copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED
"AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT
HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
"""All of the licence below its title and copyright lines: with a further or a changed condition it is another one."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """A licence as the hub names it, and where that is said."""

    id: str
    name: str | None = None
    """For `other`: its name."""
    link: str | None = None
    """For `other`: where its text is."""
    found_in: str | None = None
    """File that says so, None if none does."""


def read_licence(folder: Path | None) -> Licence:
    """Read a licence from the front matter of README.md, else from the text of LICENSE; else it is unknown."""
    if folder is None:
        return Licence(id=UNKNOWN)
    values = front_matter(folder / "README.md")
    identifier = values.get("license")
    if isinstance(identifier, str) and identifier:
        name, link = (values.get(f"license_{part}") for part in ("name", "link"))
        return Licence(
            id=identifier,
            name=name if isinstance(name, str) else None,
            link=link if isinstance(link, str) else None,
            found_in="README.md",
        )
    for path in sorted(folder.glob("LICENSE*")):
        text = _words(path.read_text(encoding="utf-8", errors="replace"))
        if text.startswith(APACHE_BEGINS):
            return Licence(id="apache-2.0", found_in=path.name)
        if text.startswith(MIT_BEGINS) and text.endswith(_words(MIT_ENDS)):
            return Licence(id="mit", found_in=path.name)
        return Licence(id="other", name=path.name, found_in=path.name)
    return Licence(id=UNKNOWN)


def front_matter(path: Path) -> dict[str, object]:
    """Return the YAML block at the head of a card; empty if there is none that can be read."""
    if not path.is_file():
        return {}
    block = re.match(r"---\s*\n(.*?)\n---\s*(?:\n|$)", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        values = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError:
        return {}  # the card of another model: what it can't tell stays unknown, and the card says so
    return values if isinstance(values, dict) else {}


def _words(text: str) -> str:
    return " ".join(text.split())
