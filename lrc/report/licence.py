"""The licence of a model folder, from what lies in it; nothing is fetched and nothing is guessed from a name."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

UNKNOWN = "unknown"
"""The hub's own word for a licence that nobody has looked up."""
APACHE_LAST_LINE = "END OF TERMS AND CONDITIONS"
APACHE_TERMS = "59d8f0ba87ad9a2f1a431123c8d16646e5b89ba53653e818f16d136d77263c99"
"""SHA-256 of the licence's words from its title to its last line, one space between them."""
APACHE_APPENDIX = r"""
(APPENDIX: How to apply the Apache License to your work\. To apply the Apache License to your work, attach the following
boilerplate notice, with the fields enclosed by brackets "(\[\]|\{\})" replaced with your own identifying information\.
\(Don't include the brackets!\) The text should be enclosed in the appropriate comment syntax for the file format\. We
also recommend that a file or class name and description of purpose be included on the same "printed page" as the
copyright notice for easier identification within third-party archives\. )?Copyright ([^.;:]|Inc\.){1,99} Licensed under
the Apache License, Version 2\.0 \(the "License"\); you may not use this file except in compliance with the License\.
You may obtain a copy of the License at http://www\.apache\.org/licenses/LICENSE-2\.0 Unless required by applicable law
or agreed to in writing, software distributed under the License is distributed on an "AS IS" BASIS, WITHOUT WARRANTIES
OR CONDITIONS OF ANY KIND, either express or implied\. See the License for the specific language governing permissions
and limitations under the License\.
"""
"""Pattern of what may follow the terms; its copyright line is filled in."""
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
    """Read a licence from the front matter of README.md, else from the text of LICENSE; else it is unknown.

    Several LICENSE files must be of one known licence: nothing tells which of them binds the weights.
    """
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
    paths = sorted(path for path in folder.glob("LICENSE*") if path.is_file())
    if not paths:
        return Licence(id=UNKNOWN)
    names = ", ".join(path.name for path in paths)
    first, *others = {_licence_id(path.read_text(encoding="utf-8", errors="replace")) for path in paths}
    if others or first == "other":
        return Licence(id="other", name=names, found_in=names)
    return Licence(id=first, found_in=names)


def _licence_id(text: str) -> str:
    """Return `apache-2.0` or `mit` if a text is that licence and nothing beside it, else `other`."""
    words = _words(text)
    terms, last_line, rest = words.replace("https://", "http://").partition(APACHE_LAST_LINE)
    is_apache = hashlib.sha256(f"{terms}{last_line}".encode()).hexdigest() == APACHE_TERMS
    if is_apache and (not rest or re.fullmatch(_words(APACHE_APPENDIX), rest.strip())):
        return "apache-2.0"
    return "mit" if words.startswith(MIT_BEGINS) and words.endswith(_words(MIT_ENDS)) else "other"


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
