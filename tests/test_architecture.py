"""The plan of the house, as tests: directions of imports, sizes, names."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from dovetail import __all__ as offered
from dovetail import stages
from dovetail.config import Config, Table
from dovetail.pipeline import STAGES
from dovetail.records import STAGE_NAMES

SOURCE = ROOT / "src" / "dovetail"
MODULES = {
    ".".join(p.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in sorted(SOURCE.rglob("*.py"))
}


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _imported(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere but for its types."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if _is_for_types_only(node):
            return
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            found.update(f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in MODULES else node.module for a in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(_tree(path))
    return {name for name in found if name in MODULES}


def test_no_module_imports_itself_by_way_of_others() -> None:
    # A package's __init__ hands out its modules by name when they are asked for; that is no arrow.
    arrows = {name: _imported(path) if path.name != "__init__.py" else set() for name, path in MODULES.items()}
    finished: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in finished:
            for other in arrows[name]:
                walk(other, (*way, name))
            finished.add(name)

    for name in arrows:
        walk(name, ())
    assert len(arrows) > 35


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("dovetail.core.")])
def test_core_knows_records_and_core_only(name: str) -> None:
    assert all(n.startswith("dovetail.core") or n in ("dovetail.records", "dovetail.errors") for n in _imported(MODULES[name]))


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("dovetail.edges.")])
def test_an_edge_imports_no_other_edge(name: str) -> None:
    own = ".".join(name.split(".")[:3])  # an edge may be a package of several modules
    assert not [n for n in _imported(MODULES[name]) if n.startswith("dovetail.edges.") and not f"{n}.".startswith(f"{own}.")]


def test_the_contracts_of_import_linter_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    said = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout


def test_no_function_is_longer_than_60_lines() -> None:
    long = [
        f"{path.name}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in MODULES.values()
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno and node.end_lineno - node.lineno >= 60
    ]
    # The application of the endpoint is a function that holds the routes; what it holds is measured by itself.
    assert long == []


@pytest.mark.parametrize("folder", ["src", "tests", "recipes", "benchmarks"])
def test_no_file_is_longer_than_400_lines(folder: str) -> None:
    long = {str(p.relative_to(ROOT)): n for p in (ROOT / folder).rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_every_module_and_every_public_name_has_a_docstring() -> None:
    silent = []
    for name, path in MODULES.items():
        tree = _tree(path)
        public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
        silent += [f"{name}.{getattr(n, 'name', '')}" for n in (tree, *public) if not ast.get_docstring(n)]
    assert silent == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert not {p.stem for p in MODULES.values()} & {"utils", "util", "helpers", "common", "base", "manager", "misc"}


def test_stages_are_named_alike_everywhere() -> None:
    tables = [name for name in Config.model_fields if isinstance(getattr(Config(), name), Table)]
    assert tuple(tables) == STAGE_NAMES == tuple(s.name for s in STAGES)
    assert set(stages.__all__) == set(STAGE_NAMES) == {p.stem for p in (SOURCE / "stages").glob("*.py")} - {"__init__"}
    assert all((ROOT / "docs" / f"{name}.md").is_file() for name in STAGE_NAMES)


def test_every_verb_is_offered_by_the_library() -> None:
    import dovetail

    assert {s.verb for s in STAGES} <= set(offered) and {"run", "paint", "status"} <= set(offered)
    assert all(callable(getattr(dovetail, name)) for name in offered if name != "__version__")
    with pytest.raises(AttributeError, match="no attribute 'dance'"):
        _ = dovetail.dance


def test_a_stage_takes_only_what_comes_before_it() -> None:
    seen = {"base"}
    for stage in STAGES:
        assert set(stage.takes) <= seen
        seen.add(stage.name)
