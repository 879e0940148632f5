"""The plan of the house, enforced on the source: one-way imports, sizes, names, nothing done at import."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lrc"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(folder.name for folder in PACKAGE.iterdir() if folder.is_dir() and any(folder.glob("*.py")))

LEVELS = [
    {"clone"},
    {"models", "data"},
    {"training", "export", "evaluation", "report", "embedded", "sft", "plan"},
    {"verbs"},
]
"""A room imports only from levels before its own."""
EXCEPTIONS = {("training", "lrc.evaluation.agreement")}
"""Training measures held-out text with the very function that the scorecard uses."""
SHARED = {
    "lrc.errors",
    "lrc.config",
    "lrc.data_config",
    "lrc.home_folder",
    "lrc.method_config",
    "lrc.overrides",
    "lrc.sft_config",
    "lrc.start_config",
    "lrc.student_config",
    "lrc.teacher_config",
}
"""Modules beside the rooms that a room may import."""
OWN_MODULES = {"clone": set(), "embedded": {"lrc.errors"}}
"""Rooms that may import less of SHARED."""
CLONE_LIBRARIES = {"torch", "math", "typing", "dataclasses", "collections", "contextlib"}

MAX_FILE_LINES = 320
MAX_FUNCTION_LINES = 60

CALLS_AT_IMPORT = {
    "ParamSpec",
    "Path",
    "TypeVar",
    "dataclass",
    "dataclasses.dataclass",
    "dataclasses.field",
    "dict",
    "field",
    "flag",
    "float",
    "frozenset",
    "math.log",
    "math.sqrt",
    "namedtuple",
    "range",
    "re.compile",
    "set",
    "tuple",
}
"""Calls that make a type, a constant or a dataclass field; the package's own classes may be called too."""

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(module: str) -> str | None:
    """Return the room of a module such as `lrc.clone.merge`, None for one beside the rooms."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else None


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full module name of every import, also those inside functions."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                folder = name_of(path).split(".")[: -node.level]
                yield node.lineno, ".".join([*folder, *filter(None, [node.module])])
            else:
                yield node.lineno, node.module or ""
            if node.module == "lrc":
                yield from ((node.lineno, f"lrc.{alias.name}") for alias in node.names)


def may_import(room: str, module: str) -> bool:
    """Tell whether a file of `room` may import `module` of this package."""
    other = room_of(module)
    if other is None:
        return module == "lrc" or module in OWN_MODULES.get(room, SHARED)
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    return other == room or level[other] < level[room] or (room, module) in EXCEPTIONS


def test_every_room_has_a_level_and_says_in_a_line_what_it_holds() -> None:
    assert set(ROOMS) <= set().union(*LEVELS)
    for room in ROOMS:
        init = PACKAGE / room / "__init__.py"
        assert init.is_file(), f"lrc/{room} has no __init__.py"
        docstring = ast.get_docstring(tree_of(init))
        assert docstring, f"lrc/{room}/__init__.py does not say what the room holds"
        assert len(docstring.split("\n\n")[0].splitlines()) == 1, f"lrc/{room}: more than one line to say what it holds"


@each_file
def test_imports_point_one_way(path: Path) -> None:
    room = room_of(name_of(path))
    own = [(line, module) for line, module in imported_modules(path) if module.split(".")[0] == "lrc"]
    if room is not None:
        bad = [f"line {line}: {module}" for line, module in own if not may_import(room, module)]
        assert not bad, f"{room} must not import {bad}"
    elif path.stem in {name.removeprefix("lrc.") for name in SHARED} or path.name == "__init__.py":
        assert {module for _, module in own} <= SHARED


def test_the_method_needs_torch_only() -> None:
    for path in FILES:
        if room_of(name_of(path)) == "clone":
            libraries = {module.split(".")[0] for _, module in imported_modules(path)} - {"lrc"}
            assert libraries <= CLONE_LIBRARIES, f"{path.name} imports {libraries - CLONE_LIBRARIES}"


@each_file
def test_files_and_functions_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{lines} lines: split the file by concern"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} (line {node.lineno}) has {length} lines"


def test_files_are_named_for_what_they_hold() -> None:
    sources = [path for folder in ("lrc", "tests", "benchmarks", "data") for path in (ROOT / folder).rglob("*.py")]
    vague = {"utils", "util", "common", "misc", "helpers"}
    assert not [str(path.relative_to(ROOT)) for path in [*sources, *ROOT.glob("*.py")] if path.stem in vague]


@each_file
def test_every_module_opens_with_what_it_holds(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


@each_file
def test_nothing_happens_at_import(path: Path) -> None:
    tree = tree_of(path)
    own_classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)} | {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lrc")
        for alias in node.names
        if alias.name[0].isupper()
    }
    bad = [f"line {node.lineno}: {what}" for node, what in work_at_import(tree.body, CALLS_AT_IMPORT | own_classes)]
    assert not bad, f"done at import: {bad}"


def work_at_import(body: list[ast.stmt], allowed_calls: set[str]) -> Iterator[tuple[ast.stmt, str]]:
    """Yield the statements of a module or class body that do more than define."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.Pass):
            continue
        if isinstance(node, ast.ClassDef):
            yield from work_at_import(node.body, allowed_calls)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for call in ast.walk(node.value) if node.value else []:
                if isinstance(call, ast.Call) and not makes_constant(call, allowed_calls):
                    yield node, ast.unparse(call)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            continue
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield node, ast.unparse(node).splitlines()[0]


def makes_constant(call: ast.Call, allowed_calls: set[str]) -> bool:
    """Tell whether a call is one of the allowed ones or a method of a literal, such as `", ".join(...)`."""
    of_literal = isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Constant)
    return of_literal or ast.unparse(call.func) in allowed_calls


@pytest.mark.parametrize(
    ("source", "done"),
    [
        ('"""Doc."""\nimport os\nX = (1, re.compile("a"))\n\n\nclass A:\n    b: int = field(default=1)\n', []),
        ("print(1)", ["print(1)"]),
        ("X = torch.device('cpu')", ["torch.device('cpu')"]),
        ("X: str = os.environ.get('A')", ["os.environ.get('A')"]),
        ("class A:\n    b = make()", ["make()"]),
        ("for x in (1, 2):\n    pass", ["for x in (1, 2):"]),
        ("if __name__ == '__main__':\n    main()", []),
    ],
)
def test_the_check_of_import_time_work_finds_it(source: str, done: list[str]) -> None:
    assert [what for _, what in work_at_import(ast.parse(source).body, CALLS_AT_IMPORT)] == done


@pytest.mark.parametrize(
    ("room", "module", "may"),
    [
        ("verbs", "lrc.training.loop", True),
        ("training", "lrc.models.pair", True),
        ("training", "lrc.export.folder", False),
        ("training", "lrc.evaluation.agreement", True),
        ("training", "lrc.evaluation.speed", False),
        ("models", "lrc.data.rows", False),
        ("models", "lrc.training.loop", False),
        ("clone", "lrc.config", False),
        ("embedded", "lrc.config", False),
        ("report", "lrc.cli", False),
    ],
)
def test_the_one_way_rule_is_what_the_plan_says(room: str, module: str, may: bool) -> None:
    assert may_import(room, module) is may
