"""The command line as a whole: help, examples, version, shell completion, exit codes."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import medals_rt
from medals_rt.cli._app import COMMANDS, Commands, app
from medals_rt.cli._errors import EXIT_INCOMPLETE
from medals_rt.cli._options import HEADINGS, run_options, with_common_flags
from medals_rt.common.choices import (
    KINDS,
    MODALITIES,
    PRECISIONS,
    PRESETS,
    REFINEMENTS,
    RUNNER_KINDS,
)
from medals_rt.prompts.matching import find_class
from tests.cli.helpers import call
from tests.paths import ROOT

GROUP = typer.main.get_command(app)
QUICK = ("prompts", "info", "plan", "version")
"""Commands whose examples take less than a second and write nothing."""


def examples(name: str) -> list[list[str]]:
    """The words of each example of a command, behind the command's name."""
    lines = "\n".join(COMMANDS[name][1]).replace("\\\n", " ").splitlines()
    words = [shlex.split(line) for line in lines]
    assert all(each[:2] == ["medals-rt", name] for each in words)
    return [each[2:] for each in words]


def test_without_arguments_help_is_shown() -> None:
    result = call()
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == call("--help").stdout == call("-h").stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", result.stdout, re.MULTILINE), name


def test_what_a_command_does_fits_its_line() -> None:
    assert "..." not in call("--help").stdout.partition("Commands:")[2]


def test_the_version() -> None:
    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"medals-rt {medals_rt.__version__}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command(name: str) -> None:
    result = call(name, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert call(name, "-h").stdout == result.stdout
    for flag in ("--quiet", "--debug", "-h, --help"):
        assert flag in result.stdout
    shown = result.stdout.partition("Examples:\n")[2].splitlines()
    assert [line.strip() for line in shown] == [line.strip() for line in COMMANDS[name][1]]
    assert not re.search(r"\bcards?\b", result.stdout)


@pytest.mark.parametrize("name", ["run", "batch", "plan", "serve", "listen"])
def test_options_of_commands_that_segment_stand_under_headings(name: str) -> None:
    shown = call(name, "--help").stdout
    headings = re.findall(r"^(\w.*):$", shown, re.MULTILINE)
    assert headings[-2:] == ["Model and machine", "Algorithm"]
    assert [each for each in HEADINGS if each in headings] == headings[headings.index("Prompts") :]
    plain = re.search(r"^Options:\n(.*?)^$", shown, re.MULTILINE | re.DOTALL)
    assert plain is not None
    assert len(re.findall(r"^  -", plain[1], re.MULTILINE)) <= 12  # serve: seven, and the common
    assert len(re.findall(r"^  -", shown, re.MULTILINE)) > 25


def test_each_option_stands_under_one_heading() -> None:
    """And every name is one of an option: else it would stand among those without."""
    names = [name for listed in HEADINGS.values() for name in listed]
    assert len(names) == len(set(names))
    assert set(names) <= {each.name for every in GROUP.commands.values() for each in every.params}
    assert set(inspect.signature(run_options).parameters) <= set(names)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse(name: str) -> None:
    assert examples(name)
    for words in examples(name):
        GROUP.commands[name].make_context(name, list(words))
        for word in words:
            assert "engines/demo" not in word, "an installed package has no such folder"


@pytest.mark.parametrize("name", QUICK)
def test_quick_examples_do_what_they_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MEDALS_RT_BUNDLE", raising=False)
    for words in examples(name):
        if "scan.nii.gz" in words:  # the user's own
            continue
        result = call(name, *words)
        assert result.exit_code == 0, result.output
        assert result.stdout
        said = result.stderr.splitlines()
        assert all(line.startswith("note: no bundle: ") for line in said), said


def offered(*words: str) -> list[str]:
    """What bash is offered for the last word."""
    environment = {
        "_MEDALS_RT_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(("medals-rt", *words)),
        "COMP_CWORD": str(len(words)),
    }
    result = CliRunner(env=environment).invoke(app, [], prog_name="medals-rt")
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ver",), {"verify", "version"}),
        (("run", "--promp"), {"--prompt", "--prompts"}),
        (("run", "--runner", "o"), {each for each in RUNNER_KINDS if each.startswith("o")}),
        (("run", "--precision", ""), {"auto", *PRECISIONS}),
        (("run", "--preset", ""), set(PRESETS)),
        (("run", "--refinement", ""), set(REFINEMENTS)),
        (("run", "--kind", ""), set(KINDS)),
        (("run", "--window", "l"), {"lung"}),
        (("prompts", "--modality", ""), set(MODALITIES)),
        (("prompts", "Left ki"), {f"Left kidney in {each}" for each in ("CT", "MRI")}),
        (("prompts", "--modality", "CT", "Left ki"), {"Left kidney in CT"}),
        (("prompts", "--modality", "mr", "Left ki"), {"Left kidney in MRI"}),
        (("run", "--prompt", "Left lu"), {"Left lung in CT"}),
        (("bench", "--runner", "openvino:f"), {"openvino:fp16", "openvino:fp32"}),
        (("verify", "--runner", "open"), {"openvino"}),
        (("verify", "--precision", "b"), {"bf16"}),
        (("verify", "--recipe", "cpu"), {"cpu-bf16"}),
        (("batch", "--format", "n"), {"npz", "nii", "nii.gz", "nrrd"}),
    ],
)
def test_shell_completion(words: tuple[str, ...], expected: set[str]) -> None:
    assert expected <= set(offered(*words))
    assert all(each.startswith(words[-1]) for each in offered(*words))


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "inserted"),
    [
        (("--modality", "CT", "--group", "abdominal"), "abdominal\\ organs"),
        (("--modality", "CT", "--group", "abdominal\\ o"), "abdominal\\ organs"),
        (("--modality", "CT", "--group", '"abdominal o'), "abdominal organs"),
        (("--statis",), "--statistics"),
    ],
)
def test_bash_completes_values_with_blanks_as_one_word(
    typed: tuple[str, ...], inserted: str, tmp_path: Path
) -> None:
    """Bash itself asks, by the script that it is given under `python -m medals_rt`."""
    environment = {
        **os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "PYTHONPATH": str(ROOT)
    }  # fmt: skip
    python = [sys.executable, "-m", "medals_rt"]
    script = subprocess.run(
        [*python, "--show-completion", "bash"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "complete -o default -F _medals_rt_completion medals-rt" in script
    command = tmp_path / "medals-rt"
    start = "import sys; from medals_rt.__main__ import main; sys.argv[0] = 'medals-rt'; main()"
    command.write_text(
        f"#!/bin/sh\nexec {shlex.join([sys.executable, '-c', start])}\n", encoding="utf-8"
    )
    command.chmod(0o755)
    words = " ".join(shlex.quote(each) for each in ("medals-rt", "run", *typed))
    asked = f"COMP_WORDS=({words}); COMP_CWORD={len(typed) + 1}; _medals_rt_completion {command}"
    lines = (script, asked, r'printf "%s\n" "${COMPREPLY[@]}"')
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],  # noqa: S607
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert inserted in done.stdout.splitlines(), done.stderr


def test_every_sentence_that_is_offered_names_its_class() -> None:
    total = 0
    for kind in KINDS:
        for sentence in offered("prompts", "--kind", kind, ""):
            name, _, modality = sentence.rpartition(" in ")
            assert str(find_class(sentence, kind).class_key) == f"{modality} {name}"
            total += 1
    assert total == 243


@pytest.fixture
def small() -> Iterator[typer.Typer]:
    """An app made as ours is, whose command returns what it is asked for."""
    made = typer.Typer(cls=Commands, rich_markup_mode=None)

    @made.callback()
    def top() -> None:
        """Hold commands."""

    def end(*, code: int | None = None) -> int | None:
        """End with a code."""
        return code

    made.command("end")(with_common_flags(end))
    return made


@pytest.mark.parametrize(("words", "code"), [((), 0), (("--code", EXIT_INCOMPLETE), 3)])
def test_a_command_returns_its_exit_code(
    small: typer.Typer, words: tuple[object, ...], code: int
) -> None:
    result = CliRunner().invoke(small, ["end", *map(str, words)])
    assert (result.exit_code, result.output) == (code, "")


def test_commands_show_no_list_of_their_own() -> None:
    """Closed lists stand in `common.choices`, formats in `io.registry`, recipes in their files."""
    names = {*RUNNER_KINDS, *PRECISIONS, *PRESETS, *REFINEMENTS, *KINDS, *MODALITIES}
    folder = Path(sys.modules["medals_rt.cli"].__file__).parent
    for path in folder.glob("*.py"):
        for row in re.findall(r"[\[({][^\])}]*[\])}]", path.read_text(encoding="utf-8")):
            literals = set(re.findall(r'"([\w-]+)"', row)) & names
            assert len(literals) < 2, f"{path.name}: {row}"
