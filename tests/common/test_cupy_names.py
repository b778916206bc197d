"""Array code on a GPU: without one, at least every name and keyword it uses must exist in CuPy.

CuPy imports without a driver, so this runs wherever it is installed.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import medals_rt

PACKAGE = Path(medals_rt.__file__).parent
ROOTS = {"xp": "array_api_compat.cupy", "cupy": "cupy", "cupyx": "cupyx"}
"""What a name in the code stands for; `xp` is the library of the arrays at hand."""


def uses(path: Path) -> Iterator[tuple[str, list[str], tuple[str, ...], int]]:
    """Yield each dotted name under one of the roots: root, parts, keywords of its call, line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        parts, base = [node.attr], node.value
        while isinstance(base, ast.Attribute):
            parts.insert(0, base.attr)
            base = base.value
        root = base.id if isinstance(base, ast.Name) else None
        if isinstance(base, ast.Attribute) or root not in ROOTS:
            continue
        call = calls.get(id(node))
        keywords = tuple(each.arg for each in call.keywords if each.arg) if call else ()
        yield root, parts, keywords, node.lineno


def complaint(root: Any, parts: list[str], keywords: tuple[str, ...]) -> str | None:
    """Describe what of a use CuPy doesn't have; None: it has all of it."""
    found = root
    for part in parts:
        if not hasattr(found, part):
            return f"has no {part}"
        found = getattr(found, part)
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        return None  # compiled functions and types don't tell
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return None
    unknown = [each for each in keywords if each not in parameters]
    return f"takes no {', '.join(unknown)}" if unknown else None


def test_every_name_and_keyword_exists_in_cupy() -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    roots = {name: importlib.import_module(module) for name, module in ROOTS.items()}
    seen, complaints = 0, []
    for path in sorted(PACKAGE.rglob("*.py")):
        for root, parts, keywords, line in uses(path):
            seen += 1
            found = complaint(roots[root], parts, keywords)
            if found is not None:
                name = ".".join([root, *parts])
                complaints.append(f"{path.relative_to(PACKAGE)}:{line}: {name} {found}")
    assert seen > 100
    assert not complaints, "\n".join(complaints)


def test_a_wrong_name_and_a_wrong_keyword_are_found() -> None:
    xp = pytest.importorskip("array_api_compat.cupy", reason="CuPy is not installed")
    assert complaint(xp, ["bincounts"], ()) == "has no bincounts"
    assert complaint(xp, ["astype"], ("casting",)) == "takes no casting"
    assert complaint(xp, ["astype"], ("copy",)) is None


def test_label_functions_of_the_card_take_what_they_are_given() -> None:
    ndimage = pytest.importorskip("cupyx.scipy.ndimage", reason="CuPy is not installed")
    assert "structure" in inspect.signature(ndimage.label).parameters


def test_no_module_allocates_on_import() -> None:
    """Allocating without a driver raises: importing all modules next to CuPy must not."""
    pytest.importorskip("cupy", reason="CuPy is not installed")
    modules = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in sorted(PACKAGE.rglob("*.py"))
        if any(uses(path))
    ]
    assert len(modules) >= 7
    for name in modules:
        importlib.import_module(name)
