"""Every error carries a code of its own, and tests go by it."""

import ast
import re
from collections.abc import Iterator

from medals_rt.common import errors
from medals_rt.common.errors import (
    DeviceLostError,
    InputError,
    MedalsError,
    MissingDependencyError,
    MissingFileError,
)
from medals_serve import problems
from medals_serve.problems import ServedProblemError
from tests.paths import ROOT

PLACES = {"medals_rt/common/errors.py": errors, "medals_serve/problems.py": problems}
"""The modules of all kinds; those of the second carry what only a service has, such as a status."""

KINDS = {
    name: each
    for module in PLACES.values()
    for name, each in vars(module).items()
    if isinstance(each, type) and issubclass(each, MedalsError)
}
SPECIFIC = {DeviceLostError, MissingFileError, MissingDependencyError, ServedProblemError}
"""Kinds whose own code says all that there is to say, or that are given a problem with its code."""

PACKAGES = ("medals_rt", "medals_export", "medals_serve")


def nodes(*folders: str) -> Iterator[tuple[str, ast.AST]]:
    """Every node of the syntax trees below these folders, and its file.

    Parsed again for each test: to keep half a million nodes takes the garbage collector longer.
    """
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield file, node


def made() -> Iterator[tuple[str, type[MedalsError], ast.expr | None]]:
    """Errors that the packages make: the place, the kind, and the code that is given."""
    for file, node in nodes(*PACKAGES):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
            code = next((word.value for word in node.keywords if word.arg == "code"), None)
            yield f"{file}:{node.lineno}", KINDS[node.func.id], code


def test_a_kind_has_a_code_that_an_error_may_make_specific() -> None:
    assert MedalsError("no").code == "failure"
    assert InputError("no").code == "input"
    assert InputError("no", code="two-of-one").code == "two-of-one"
    assert len({kind.code for kind in KINDS.values()}) == len(KINDS)


def test_all_kinds_are_in_their_modules() -> None:
    """The other tests here see no kind that is made elsewhere."""
    elsewhere = [
        f"{file}:{node.lineno}"
        for file, node in nodes(*PACKAGES)
        if isinstance(node, ast.ClassDef)
        and file not in PLACES
        and any(ast.unparse(base).rpartition(".")[2] in KINDS for base in node.bases)
    ]
    assert elsewhere == []


def test_every_error_is_given_a_code() -> None:
    assert [place for place, kind, code in made() if code is None and kind not in SPECIFIC] == []


def test_codes_are_specific_and_of_one_form() -> None:
    general = {kind.code for kind in KINDS.values() if kind not in SPECIFIC}
    literals = [
        (place, node.value)
        for place, _, code in made()
        if code is not None and not isinstance(code, ast.JoinedStr)
        for node in ast.walk(code)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(literals) > 300
    form = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
    assert [each for each in literals if not form.fullmatch(each[1])] == []
    assert [each for each in literals if each[1] in general] == []


def test_no_raise_leaves_the_kind_bare() -> None:
    """`raise CaseError` without a call would have neither message nor code."""
    bare = [
        f"{file}:{node.lineno}"
        for file, node in nodes(*PACKAGES)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id in KINDS
    ]
    assert bare == []


def test_wording_is_tested_in_one_place() -> None:
    """Elsewhere `tests.errors.raises`; errors of Python and of other libraries have no code."""
    found = [
        f"{file}:{node.lineno}"
        for file, node in nodes("tests")
        if isinstance(node, ast.Call)
        and file != "tests/cli/test_messages.py"
        and ast.unparse(node.func) == "pytest.raises"
        and any(word.arg == "match" for word in node.keywords)
        and ast.unparse(node.args[0]).rpartition(".")[2] in KINDS
    ]
    assert found == []
