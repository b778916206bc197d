"""The order of the house: which folder may import which, without circles (CONTRIBUTING)."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

ORDER = (
    "common",
    "bundle",
    "runners",
    "prompts",
    "io",
    "planning",
    "preprocessing",
    "postprocessing",
    "inference",
    "pipeline",
    "tools",
    "cli",
)
"""From the ground up: each imports only what stands before it, and itself."""

PACKAGES = ("medals_rt", "medals_export", "medals_serve")
"""Of the wheel. The first imports none of the others, which don't import each other."""

MOST_ENTRIES = 15


def modules() -> dict[str, Path]:
    """Every module of all packages, by its full name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[tuple[str, int]]:
    """What a module imports of all packages, wherever in the file: in functions and for types."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                name = whole if whole in MODULES else node.module or ""
                if name in MODULES:
                    yield name, node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    yield alias.name, node.lineno


def floor(module: str) -> int | None:
    """Position in `ORDER`; None for the package's own face."""
    parts = module.split(".")
    if parts[0] != "medals_rt" or len(parts) == 1 or parts[1] == "__main__":
        return None
    return ORDER.index(parts[1])


@pytest.mark.parametrize("module", sorted(MODULES))
def test_each_folder_imports_only_folders_below_it(module: str) -> None:
    here = floor(module)
    if here is None:
        return
    climbs = [
        f"line {line}: {name}"
        for name, line in imports(module)
        if (there := floor(name)) is not None and there > here
    ]
    assert climbs == []


def test_packages_import_the_run_time_alone() -> None:
    found = [
        f"{module}:{line} {name}"
        for module in MODULES
        for name, line in imports(module)
        if name.partition(".")[0] not in {PACKAGES[0], module.partition(".")[0]}
    ]
    assert found == []


def test_no_circle_of_files() -> None:
    """Also none that imports in functions or under TYPE_CHECKING would hide."""
    graph = {module: {name for name, _ in imports(module)} - {module} for module in MODULES}
    # the faces of packages name what lies in them, lazily; they are no rooms
    for face in ("medals_rt",):
        graph.pop(face)
    finished: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module in finished or module not in graph:
            return
        for name in sorted(graph[module]):
            visit(name, (*trail, module))
        finished.add(module)

    for module in graph:
        visit(module, ())


def test_nothing_in_the_package_imports_its_face() -> None:
    """What `medals_rt` itself shows is for users: a module inside takes it from where it lies."""
    found = [
        f"{module}:{line}"
        for module in MODULES
        if module != "medals_rt"
        for name, line in imports(module)
        if name == "medals_rt"
    ]
    assert found == []


def test_a_public_class_name_means_one_thing() -> None:
    """In all packages together; names that begin with an underscore are private to their file."""
    homes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(f"{module}:{node.lineno}")
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_the_listing_shows_the_way_of_a_case() -> None:
    entries = [
        path.name
        for path in (ROOT / "medals_rt").iterdir()
        if path.name != "__pycache__" and path.suffix != ".pyc"
    ]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)
    folders = {Path(name).stem for name in entries if not name.startswith("__")} - {"py"}
    assert folders == set(ORDER)


def test_the_places_of_changes_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("### Where a change belongs")[2].partition("The path of a case")[0]
    places = re.findall(r"`([\w./]+/[\w./]+)`", table)
    assert len(places) > 20
    assert [place for place in places if not (ROOT / "medals_rt" / place).exists()] == []


def test_the_package_docstring_lists_the_order() -> None:
    text = importlib.import_module("medals_rt").__doc__ or ""
    places = [text.find(f"`{name}`") for name in ORDER]
    assert -1 not in places
    assert places == sorted(places)
