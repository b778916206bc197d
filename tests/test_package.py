"""What importing costs, what needs what, and where class names may stand."""

import ast
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points, version
from os import PathLike
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.common import errors
from medals_rt.prompts.classes import all_classes
from tests.paths import ROOT as CHECKOUT

ROOT = Path(medals_rt.__file__).parent
HEAVY = (
    *("torch", "cupy", "tensorrt", "openvino", "onnxruntime", "onnx", "transformers"),
    *("matplotlib", "nibabel", "nrrd", "scipy.ndimage", "medals_export"),
)


def modules_after(code: str) -> set[str]:
    """Run code in a new process; give the modules that it loaded."""
    script = f"{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_is_light() -> None:
    loaded = modules_after("import medals_rt")
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_the_command_is_light(flag: str) -> None:
    """It needs neither NumPy nor rich, nor the readers of models and class lists."""
    code = (
        "import contextlib, sys\n"
        "from medals_rt.cli import main\n"
        f"sys.argv = ['medals-rt', '{flag}']\n"
        "with contextlib.suppress(SystemExit):\n"
        "    main()"
    )
    loaded = modules_after(code)
    assert not loaded & {*HEAVY, "numpy", "scipy", "rich", "msgspec", "rapidfuzz"}


def test_every_module_imports_without_the_optional_libraries() -> None:
    """In an interpreter where the extras can't be imported."""
    names = sorted(
        ".".join(("medals_rt", *path.relative_to(ROOT).with_suffix("").parts))
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py"
    )
    assert len(names) > 20
    blocked = [name for name in HEAVY if not name.startswith("scipy")]
    code = (
        "import importlib, sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked!r}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)"
    )
    assert set(names) <= modules_after(code)


def taken_and_raised(name: str, given: Any) -> Iterator[tuple[str, str]]:
    """Each class of ours that a public function takes, or names as an error, and where."""
    public = {name: getattr(medals_rt, name) for name in medals_rt.__all__}
    hints = get_type_hints(given, localns={**public, "MaskSource": Any, "PathLike": PathLike})
    for parameter, kind in hints.items():
        if parameter != "return":
            yield from ((each, f"{name}({parameter})") for each in ours_in(kind))
    for error in re.findall(r"\b[A-Z]\w+Error\b", inspect.getdoc(given) or ""):
        if hasattr(errors, error):
            yield error, f"{name} raises"


def ours_in(kind: Any) -> set[str]:
    """Names of the package's classes in a type."""
    if isinstance(kind, list):  # what a callable takes
        return {each for part in kind for each in ours_in(part)}
    if get_args(kind):
        return {each for part in get_args(kind) for each in ours_in(part)}
    return {kind.__name__} if getattr(kind, "__module__", "").startswith("medals_rt") else set()


def test_what_public_functions_take_and_raise_is_public() -> None:
    """`dir(medals_rt)` is the whole interface."""
    given = {name: getattr(medals_rt, name) for name in dir(medals_rt) if name[0] != "_"}
    assert {*given} == {*medals_rt._HOMES} == {*medals_rt.__all__}
    for read in ("BatchResult", "Bundle", "Listener", "Segment"):  # nobody gives their parts
        del given[read]
    for name, each in [*given.items()]:
        if isinstance(each, type):
            methods = inspect.getmembers(each, inspect.isroutine)
            own = {f"{name}.{method}": it for method, it in methods if method[0] != "_"}
            given |= {method: it for method, it in own.items() if hasattr(it, "__annotations__")}
    found = [pair for name, each in given.items() for pair in taken_and_raised(name, each)]
    assert len(found) > 50
    assert [(name, where) for name, where in found if name not in medals_rt.__all__] == []


def test_help_of_load_says_what_it_takes() -> None:
    said = inspect.getdoc(medals_rt.load) or ""
    for parameter in inspect.signature(medals_rt.load).parameters:
        assert f"\n{parameter}\n" in said, parameter


def test_no_class_name_stands_in_the_code() -> None:
    """Rules that name a class live in policy.toml, the class list in data/."""
    names = {key.name for key in all_classes()} - {"Lesion"}
    found = []
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        found += [
            f"{path.name}:{node.lineno} {node.value!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and id(node) not in docs and node.value in names
        ]
    assert found == []


def test_version_and_entry_point() -> None:
    assert version("medals-rt") == medals_rt.__version__
    (entry,) = entry_points(group="console_scripts", name="medals-rt")
    assert entry.value == "medals_rt.__main__:main"


def test_the_wheel_holds_the_whole_demo_model() -> None:
    """Every file that its manifest names, and its cases; not the engines that were built for it."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert all((CHECKOUT / source).exists() for source in included)
    demo = CHECKOUT / "engines" / "demo"
    named = [demo / each.file for each in Bundle.open(demo).manifest.files()]
    for path in (*named, *(demo / "cases").iterdir(), demo / "bundle.json"):
        relative = path.relative_to(CHECKOUT)
        source = next(each for each in (relative, relative.parent) if each.as_posix() in included)
        inside = Path(included[source.as_posix()]) / relative.relative_to(source)
        assert inside == Path("medals_rt/bundle/demo") / path.relative_to(demo)
    assert not any("engines/demo/engines".startswith(source) for source in included)
