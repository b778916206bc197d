"""Every command and Python line of the documentation: run, or at least checked word by word."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("torch", reason="makes checkpoints and a bundle: the extra 'export'")
pytest.importorskip("transformers", reason="makes a text encoder: the extra 'export'")
pytest.importorskip("highdicom", reason="the pages read and write DICOM: the extra 'dicom'")

from medals_export import checkpoint, export
from medals_export.checkpoint import save_checkpoint
from medals_rt.bundle.bundle import Bundle
from medals_rt.cli import app
from medals_rt.runners.base import Runner
from medals_rt.runners.tensorrt_library import MODULES
from tests import documented
from tests.bundles import tiny_checkpoint
from tests.documented import COMMAND, ROOT, Block, blocks, commands, pages

PAGES = pages()
RUN = ("bash", "python")
NEEDS_TENSORRT_RTX = {"rtx-workstation.md"}
"""Pages whose commands build engines: the extra 'rtx' isn't published for every machine."""
MADE_HERE = {"your-own-checkpoint.md": "engines/medal-s"}
"""What a page makes itself, so that it must not be there."""
SLOW = {"add-a-runner.md", "cpu.md", "rtx-workstation.md", "your-own-checkpoint.md"}
"""Pages whose commands take long also on the smallest model; their options are checked below."""
RELEASED = {
    1: "nano_UNet_CVPR2025_crop_size_224_224_128_spacing_1.5_1.5_3.0_step_358600.pth",
    2: "nano_UNet_CVPR2025_crop_size_192_192_192_spacing_1.0_1.0_1.0_step_341300.pth",
}
PROMPTS = '{"1": "Left lung in chest CT", "2": "Right lung in chest CT", "instance_label": 0}'
KNOWN_SENTENCES = '{"CT_x": {"1": ["Left lung in chest CT", "left lung"], "instance_label": 0}}'
USAGE_ERROR = typer.BadParameter.__mro__[1]
"""click's UsageError; some versions of typer carry a click of their own."""
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"(?<![\w./-])(?:benchmarks|docs|tests|medals_rt|medals_export)/[\w./-]*\w")


def id_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]


def bash_blocks() -> list[Block]:
    return [block for block in all_blocks() if block.language == "bash"]


@pytest.fixture(scope="module")
def models(
    tiny_bundle: Bundle,
    text_bundle: Bundle,
    text_sources: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Everything that is slow to make: `engines` with two bundles, and `weights`."""
    folder = tmp_path_factory.mktemp("documented")
    (folder / "engines").mkdir()
    demo = documented.cover_all_classes(tiny_bundle, folder / "engines" / "demo")
    (demo.folder / "cases").mkdir()
    documented.cover_all_classes(text_bundle, folder / "engines" / "medal-s")
    weights = folder / "weights"
    weights.mkdir()
    for stage, name in RELEASED.items():
        made = tiny_checkpoint(stage)
        save_checkpoint(weights / name, made.model, made.spacing_hwd_mm)
    text_encoder, biolord = text_sources
    shutil.copy(text_encoder, weights / "text_encoder.pth")
    shutil.copytree(biolord, weights / "BioLORD-2023-C")
    (weights / "challenge_prompts.json").write_text(KNOWN_SENTENCES, encoding="utf-8")
    (folder / "prompts.json").write_text(PROMPTS, encoding="utf-8")
    documented.write_scans(folder)
    shutil.copy(folder / "case.npz", demo.folder / "cases" / "chest.npz")
    shutil.copy(ROOT / "predict.sh", folder)
    return folder


@pytest.fixture
def workspace(
    request: pytest.FixtureRequest,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with what the page of the test names, where its commands are run."""
    page: Path = request.getfixturevalue("page")
    folder = tmp_path / "work"
    shutil.copytree(models, folder)
    if page.name in MADE_HERE:
        shutil.rmtree(folder / MADE_HERE[page.name])
    for block in blocks(page):
        if block.language not in {*RUN, "text", ""} and block.label:
            (folder / block.label).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MEDALS_RT_BUNDLE", str(folder / "engines" / "demo"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    # as at the released size, where windows are larger than this
    monkeypatch.setattr(export, "MOST_VERIFIED_VOXELS", 0)
    # names of the released size, weights of the smallest, which would contradict each other
    monkeypatch.setattr(checkpoint, "parse_released_name", lambda _: (None, None))
    return folder


def has_code(page: Path) -> bool:
    return any(block.language in RUN and not block.label for block in blocks(page))


def as_parameter(page: Path) -> Any:
    marks = [pytest.mark.slow] if page.name in SLOW else []
    return pytest.param(page, id=id_of(page), marks=marks)


@pytest.mark.parametrize("page", [as_parameter(page) for page in PAGES if has_code(page)])
def test_what_a_page_says_can_be_done(page: Path, workspace: Path) -> None:
    """A page's blocks one after the other, in one folder, as a reader would."""
    if page.name in NEEDS_TENSORRT_RTX and not any(map(find_spec, MODULES["tensorrt-rtx"])):
        pytest.skip("TensorRT-RTX is not installed: the extra 'rtx'")
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.language == "python" and not block.label:
            exec(compile(block.text, block.place, "exec"), names)  # noqa: S102 - it is our own
        elif block.language == "bash" and not block.label:
            for environment, words in commands(block):
                run(environment, words, workspace, block.place)


def plans(page: Path) -> list[tuple[Block, dict[str, str], list[str]]]:
    """The lines of a page that plan: dry runs, which are quick."""
    return [
        (block, environment, words)
        for block in blocks(page)
        if block.language == "bash"
        for environment, words in commands(block)
        if words[:2] == [COMMAND, "plan"]
    ]


@pytest.mark.parametrize("page", [each for each in PAGES if each.name in SLOW and plans(each)])
def test_a_slow_page_plans_what_it_says(
    page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDALS_RT_BUNDLE")
    for block, environment, words in plans(page):
        run(environment, words, workspace, block.place)


def run(environment: dict[str, str], words: list[str], folder: Path, place: str) -> None:
    """Run one command, `medals-rt` in this process, because a new one costs seconds."""
    if words[0] == COMMAND:
        result = CliRunner(env=environment).invoke(app, words[1:])
        assert result.exit_code == 0, f"{place}: {' '.join(words)}\n{result.output}"
        return
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{place}: {' '.join(words)}\n{done.stdout}{done.stderr}"


def test_blocks_are_marked_as_the_index_says() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for label in documented.CHECKED_ONLY:
        assert f"`{label}`" in index
    for block in all_blocks():
        if block.language == "bash":
            assert block.label in {"", *documented.CHECKED_ONLY}, block.place
        assert block.language, f"{block.place} says no language"
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(all_blocks()) * 2 == len(re.findall(r"^```", text, re.MULTILINE)), "a fence is open"


@pytest.mark.parametrize("block", bash_blocks(), ids=lambda block: block.place)
def test_every_command_and_option_exists(block: Block) -> None:
    """Also of what can't be run here."""
    found = [words for _, words in commands(block)]
    assert found, block.place
    for words in found:
        check = CHECKS.get(words[0])
        if check is not None:
            check(words[1:])
        else:
            assert words[0] in {"sh", "export"} or (ROOT / words[0]).is_file(), words
        named = [word for before, word in pairwise(words) if before != "--output"]
        for path in _PATH.findall(" ".join(named)):
            assert list(ROOT.glob(f"{path}*")), f"{block.place} names {path}"


def parse(words: list[str]) -> None:
    """Parse the words of a `medals-rt` command without running it."""
    group = typer.main.get_command(app)
    name, *rest = words
    group.commands[name].make_context(name, rest)


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in words:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(extras_of_project()), extras


def check_python(words: list[str]) -> None:
    """Look for the script or module, and for its options in its text."""
    if words[0] == "-m":
        if words[1] == "venv":
            return
        found = find_spec(words[1])
        assert found is not None, words[1]
        assert found.origin is not None
        script, options = Path(found.origin), words[2:]
        script = script.with_name("__main__.py") if script.name == "__init__.py" else script
    else:
        script, options = ROOT / words[0], words[1:]
    text = script.read_text(encoding="utf-8")
    if "new_parser(" in text:  # whose options are the script's too
        text += (ROOT / "benchmarks/reporting.py").read_text(encoding="utf-8")
    for option in (word for word in options if word.startswith("--") and word != "--help"):
        assert f'"{option}"' in text, f"{script.name} has no {option}"


def check_docker(words: list[str]) -> None:
    """Look for the files that a build names, and for its arguments in them."""
    if words[0] != "build":
        return
    file = words[words.index("--file") + 1] if "--file" in words else "Dockerfile"
    text = (ROOT / file).read_text(encoding="utf-8")
    for at, word in enumerate(words):
        if word == "--build-arg":
            assert f"ARG {words[at + 1].partition('=')[0]}=" in text


CHECKS = {
    COMMAND: parse,
    "make": check_make,
    "pip": check_pip,
    ".venv/bin/pip": check_pip,
    "python": check_python,
    "python3": check_python,
    "docker": check_docker,
}


@pytest.mark.parametrize(
    ("check", "words", "error"),
    [
        (parse, ["run", "--input", "x", "--no-such"], USAGE_ERROR),
        (parse, ["run"], USAGE_ERROR),
        (parse, ["build", "--target", "abacus"], USAGE_ERROR),
        (parse, ["walk"], KeyError),
        (check_make, ["tea"], AssertionError),
        (check_pip, ["install", ".[cpu,abacus]"], AssertionError),
        (check_python, ["benchmarks/memory.py", "--no-such"], AssertionError),
        (check_python, ["-m", "tests.no_such"], AssertionError),
        (check_docker, ["build", "--build-arg", "NO=such"], AssertionError),
    ],
)
def test_wrong_commands_are_noticed(
    check: Callable[[list[str]], None], words: list[str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        check(words)


def test_the_sketch_of_a_runner_is_the_protocol() -> None:
    (sketch,) = (block for block in all_blocks() if block.label == "sketch")
    (shown,) = ast.parse(sketch.text).body
    assert isinstance(shown, ast.ClassDef)
    members = {each.target.id for each in shown.body if isinstance(each, ast.AnnAssign)}
    methods = {each.name for each in shown.body if isinstance(each, ast.FunctionDef)}
    assert members == set(Runner.__annotations__)
    assert methods == {n for n, each in vars(Runner).items() if callable(each) and n[0] != "_"}


def links() -> Iterator[tuple[Path, str]]:
    """Yield every relative link, with its page; what is in fences is no link."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in _LINK.findall(text):
            if not re.match(r"[a-z]+:", target):
                yield page, target


@pytest.mark.parametrize(("page", "target"), list(links()), ids=lambda value: Path(value).name)
def test_links_lead_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    found = (page.parent / path).resolve() if path else page
    assert found.exists(), f"{id_of(page)} links to {target}"
    if anchor:
        headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in headings}
        assert anchor in slugs, f"{id_of(page)} links to {target}"


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def extras_of_project() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return list(project["project"]["optional-dependencies"])


def test_nothing_is_left_unsaid() -> None:
    """Every command, extra and runner is mentioned."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in typer.main.get_command(app).commands:
        assert f"{COMMAND} {name}" in text, name
    for extra in extras_of_project():
        installed = re.search(rf"\[(?:\w+,)*{extra}(?:,\w+)*\]", text)
        assert installed or f"`{extra}`" in text, extra
    for kind in ("openvino", "onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"):
        assert f"--runner {kind}" in text, kind


def test_sections_and_rules_that_the_code_refers_to_are_there() -> None:
    """Sections of docs/algorithm.md, rules of docs/presets.md, and nothing outside."""
    algorithm, presets = (
        (ROOT / "docs" / name).read_text(encoding="utf-8")
        for name in ("algorithm.md", "presets.md")
    )
    sections = set(re.findall(r"^## (\d+)\.", algorithm, re.MULTILINE))
    rules = set(re.findall(r"^(\d+)\. ", presets, re.MULTILINE))
    assert "8" in sections
    assert "8" in rules
    for path in sorted((ROOT / "medals_rt").rglob("*.py")):
        text = " ".join(path.read_text(encoding="utf-8").split())
        named = re.findall(r"algorithm\.md, sections? (\d+)(?: to (\d+))?", text)
        assert {number for pair in named for number in pair if number} <= sections, path
        named_rules = re.findall(r"\b[Rr]ules? (\d+)(?: to (\d+))?", text)
        assert {number for pair in named_rules for number in pair if number} <= rules, path
        assert not re.search(r"\bsystem (section|rule)", text, re.IGNORECASE), path
