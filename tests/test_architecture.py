"""The borders of the package, read from its source: who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ("train.py", "evaluate.py")
COMMANDS = "__main__"
MAX_LINES = 250
MAX_FUNCTION_LINES = 60  # the aim is 40

# Imports run downwards only; parts on one level do not know each other.
LEVELS = (
    ("types", "allocator", "argmax", "buffers", "replay", "shown"),
    ("blocks",),
    ("target", "draft", "objective", "data"),
    ("decode",),
    ("evaluation",),
    ("training",),
    ("hub",),
    ("check_bounds", "check_data", "check_draft", "check_trainer"),
    ("check",),
    ("compose", "plan"),
    ("assemble",),
    ("chat", "study"),
    (*SCRIPTS, COMMANDS),
)
# Each framework stays behind its border. At a border of types, an import that only type checkers see may cross.
BORDERS = {
    "hydra": ("dflash/compose/", *SCRIPTS),
    "omegaconf": ("dflash/compose/", *SCRIPTS),
    "lightning": ("dflash/training/", "dflash/data/modules.py"),
    "transformers": ("dflash/target/", "dflash/hub/"),
}


def level_of(part: str) -> int:
    for level, parts in enumerate(LEVELS):
        if part in parts:
            return level
    raise AssertionError(f"{part} has no level: say in LEVELS where it stands")


def part_of(path: str) -> str:
    """The part a file belongs to: dflash/draft/rope.py -> draft, dflash/types.py -> types, train.py -> train.py.

    What ``python -m`` starts is a script too, wherever it lies: nothing imports it.
    """
    if path.endswith(f"/{COMMANDS}.py"):
        return COMMANDS
    return path if path in SCRIPTS else path.split("/")[1].removesuffix(".py")


def source_files() -> list[str]:
    inside = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "dflash").rglob("*.py"))
    return [*inside, *(name for name in SCRIPTS if (ROOT / name).exists())]


@cache
def tree_of(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def imports_of(tree: ast.AST, *, at_runtime: bool = True) -> Iterator[tuple[str, bool]]:
    """(module imported, whether it is at run time) of every import, those inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_runtime) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [alias.name for alias in node.names] if node.module == "dflash" else [""]
            yield from ((f"{node.module}.{name}".rstrip("."), at_runtime) for name in names)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from imports_of(ast.Module(node.body, []), at_runtime=False)
            yield from imports_of(ast.Module(node.orelse, []), at_runtime=at_runtime)
        else:
            yield from imports_of(node, at_runtime=at_runtime)


def test_the_reader_of_imports_finds_them_all():
    source = """
import a.b, c
from d import e
if TYPE_CHECKING:
    from f import g
def h():
    from dflash import i, j
    import k
"""
    found = list(imports_of(ast.parse(source)))
    names = [("a.b", True), ("c", True), ("d", True), ("f", False), ("dflash.i", True), ("dflash.j", True), ("k", True)]
    assert found == names


@pytest.mark.parametrize("path", source_files())
def test_imports_run_downwards(path):
    own = part_of(path)
    if own == "__init__":
        assert not list(imports_of(tree_of(path)))
        return
    for name, _ in imports_of(tree_of(path)):
        package, _, rest = name.partition(".")
        if package != "dflash" or not rest:
            continue
        other = rest.split(".")[0]
        assert other == own or level_of(other) < level_of(own), f"{path} ({own}) imports {name}, which is not below it"


@pytest.mark.parametrize("path", source_files())
def test_frameworks_stay_behind_their_borders(path):
    for name, at_runtime in imports_of(tree_of(path)):
        homes = BORDERS.get(name.split(".")[0], ("",))
        typing_only = name.startswith("transformers") and not at_runtime
        assert typing_only or path.startswith(homes), f"{path} imports {name}, which belongs to {', '.join(homes)}"


@pytest.mark.parametrize("path", source_files())
def test_files_are_short_and_say_what_they_are_for(path):
    tree = tree_of(path)
    assert len((ROOT / path).read_text().splitlines()) < MAX_LINES, f"{path} is too long: split it"
    assert ast.get_docstring(tree), f"{path} has no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = body_lines(node)
            assert length <= MAX_FUNCTION_LINES, f"{path}: {node.name} has {length} lines: split it"


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body behind its docstring, so that explaining a signature costs nothing."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", source_files())
def test_nothing_prints_or_changes_globals(path):
    for node in ast.walk(tree_of(path)):
        assert not isinstance(node, ast.Global), f"{path}:{node.lineno} changes a global"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}:{node.lineno} prints: use the logger or the report"
            hidden_default = node.func.id == "getattr" and len(node.args) == 3
            assert node.func.id != "hasattr" and not hidden_default, f"{path}:{node.lineno} probes for an attribute"
