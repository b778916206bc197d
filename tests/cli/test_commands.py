"""The installed command, and the commands that only show something."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import (
    BundleError,
    InputError,
    MissingDependencyError,
    MissingFileError,
    PromptError,
)
from tests.cli.helpers import Result, assert_one_line, assert_refused, call, error_of


def test_the_installed_command(tmp_path: Path) -> None:
    """A real process: output, error and exit code."""
    command = Path(sys.executable).with_name("medals-rt")
    helped = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    for name in ("run", "batch", "plan", "prompts", "evaluate", "info", "export", "version"):
        assert name in helped.stdout
    missing = ["run", "--input", str(tmp_path / "none.npz")]
    failed = subprocess.run([command, *missing], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1


def test_info_shows_the_notice(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "notice" not in call("info", "--bundle", tiny_bundle.folder).stdout
    monkeypatch.setattr(Bundle, "notice", "for tests only")
    assert "\nnotice: for tests only\n" in call("info", "--bundle", tiny_bundle.folder).stdout


def test_info(tiny_bundle: Bundle, tmp_path: Path) -> None:
    result = call("info", "--bundle", tiny_bundle.folder)
    assert result.exit_code == 0, result.output
    assert tiny_bundle.hash in result.stdout
    assert "16 x 16 x 8" in result.stdout
    content = json.loads(call("info", "--bundle", tiny_bundle.folder, "--json").stdout)
    assert content["hash"] == tiny_bundle.hash
    assert content["format_version"] == 2
    assert_refused(call("info", "--bundle", tmp_path), BundleError | MissingFileError)


def test_version() -> None:
    shown = call("version")
    assert shown.stdout.splitlines()[1] == f"medals-rt {medals_rt.__version__}"
    versions = json.loads(call("version", "--json").stdout)
    assert versions["medals-rt"] == medals_rt.__version__
    assert [f"{name} {version}" for name, version in versions.items()] == shown.stdout.splitlines()


def test_prompts() -> None:
    found = json.loads(call("prompts", "Liver in abdominal CT", "--json").stdout)
    assert found == {"modality": "CT", "class": "Liver", "id": 1, "matched": found["matched"]}
    assert "Liver" in call("prompts", "liver, CT").stdout
    assert_refused(call("prompts", "Livre on CT"), PromptError)
    either = json.loads(call("prompts", "left kidney", "--json").stdout)
    assert [(each["modality"], each["id"]) for each in either] == [("CT", 5), ("MRI", 3)]
    assert "--modality" in call("prompts", "left kidney").stdout.splitlines()[-1]
    for words in (("prompts",), ("prompts", "liver, CT", "--list")):
        assert error_of(call(*words)).code == "sentence-or-list"


def test_the_list_of_classes() -> None:
    assert len(json.loads(call("prompts", "--list", "--json").stdout)) == 243
    listed = json.loads(call("prompts", "--list", "--modality", "CT", "--json").stdout)
    assert len(listed) == 137
    assert {row["modality"] for row in listed} == {"CT"}
    shown = call("prompts", "--list", "--kind", "anatomy").stdout
    assert "Liver" in shown
    assert "lesion" not in shown


def test_the_list_of_groups() -> None:
    listed = json.loads(call("prompts", "--groups", "--modality", "CT", "--json").stdout)
    assert {row["modality"] for row in listed} == {"CT"}
    (found,) = (row for row in listed if row["group"] == "kidneys")
    assert found["classes"][:2] == ["Right kidney", "Left kidney"]
    shown = call("prompts", "--groups").stdout
    assert "calf muscles" in shown
    assert "calf muscles\tUS\tGastrocnemius Medialis" in shown.splitlines()  # for programs
    assert max(map(len, shown.splitlines())) < 100


@pytest.mark.parametrize("words", [("liver", "--list"), ("--groups", "--list")])
def test_one_thing_is_asked_of_prompts(words: tuple[str, ...]) -> None:
    result = call("prompts", *words)
    assert result.exit_code == 2
    assert "give one of them" in result.stderr


NUMBERS = ("--shape", "60,60,60", "--spacing", "2,2,2", "--classes", "CT/Liver")


def test_a_plan_without_a_bundle_is_of_the_runner_that_is_asked_for() -> None:
    plan = json.loads(call("plan", *NUMBERS, "--runner", "onnxruntime", "--json").stdout)
    assert (plan["runner"], plan["precision"]) == ("onnxruntime", "fp32")
    assert [note["code"] for note in plan["notes"]] == ["no-bundle"]


def test_a_plan_of_numbers_takes_the_bundle_of_the_environment(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = call("plan", *NUMBERS, "--bundle", tiny_bundle.folder, "--json").stdout
    monkeypatch.setenv("MEDALS_RT_BUNDLE", str(tiny_bundle.folder))
    assert call("plan", *NUMBERS, "--json").stdout == named


def test_idle_options_of_a_plan_are_named() -> None:
    words = ("--kind", "lesion", "--lesion-iterations", "3", "--modality", "CT")
    notes = json.loads(call("plan", *NUMBERS, *words, "--json").stdout)["notes"]
    assert [note["text"].partition(" change")[0] for note in notes[1:]] == [
        "--lesion-iterations",
        "--modality and --kind",
    ]


def test_runs_and_plans_refuse_the_same_arithmetic(
    tiny_bundle: Bundle, case: Path, run: Callable[..., Result]
) -> None:
    for options, code in (
        ({"precision": "int8"}, "precision-not-exported"),
        ({"precision": "fp16", "runner": "openvino"}, "precision-unsupported"),
        ({"convolution": "winograd", "runner": "onnxruntime"}, "convolution-unsupported"),
    ):
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        planned = call("plan", "--input", case, "--bundle", tiny_bundle.folder, *words)
        for result in (planned, run(**options)):
            assert_refused(result, InputError)
            assert error_of(result).code == code


def test_a_plan_says_which_options_it_does_not_depend_on() -> None:
    words = ("--shape", "60,60,60", "--spacing", "2,2,2", "--classes", "CT/Liver")
    result = call("plan", *words, "--threshold", "0.3")
    assert "note: --threshold changes nothing here" in result.stderr
    assert "note: no bundle" in result.stderr
    bare, kept = (
        json.loads(call("plan", *words, *more, "--json").stdout)["expected_peak_memory_mib"]
        for more in ((), ("--probabilities",))
    )
    assert bare < kept < bare + 50


def test_plan_of_a_case(tiny_bundle: Bundle, case: Path, run: Callable[..., Result]) -> None:
    arguments = ("plan", "--input", case, "--bundle", tiny_bundle.folder)
    arguments += ("--precision", "fp32")
    assert run("--quiet").exit_code == 0  # which measures a pass
    plan = json.loads(call(*arguments, "--json").stdout)
    assert [stage["stage"] for stage in plan["stages"]] == [1, 2]
    assert plan["classes"] == ["CT Liver"]
    least, most = plan["expected_seconds"]
    assert 0 < least <= most
    assert plan["expected_peak_memory_mib"] > 0
    shown = call(*arguments).stdout
    assert "CT Liver" in shown
    assert "peak memory" in shown


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--input", "a.npz", "--shape", "1,1,1"), "case-twice"),
        (("--shape", "1,1,1"), "case-missing"),
        (("--input", "a.npz", "--max-memory", "much"), "memory-size-invalid"),
        ((*NUMBERS, "--prompt", "Liver in CT"), "classes-twice"),
        ((*NUMBERS, "--group", "nonsense"), "classes-twice"),
        ((*NUMBERS, "--series", "4"), "series-without-case"),
        ((*NUMBERS, "--select", "ECHO=2"), "series-without-case"),
        ((*NUMBERS, "--max-voxels", "9"), "too-many-voxels"),
        (
            (*NUMBERS, "--runner", "onnxruntime", "--convolution", "winograd"),
            "convolution-unsupported",
        ),
        ((*NUMBERS, "--runner", "onnxruntime", "--precision", "bf16"), "precision-unsupported"),
    ],
)
def test_plans_of_nothing(words: tuple[str, ...], code: str) -> None:
    result = call("plan", *words)
    assert_refused(result, InputError)
    assert error_of(result).code == code


def test_export_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medals_rt.common.optional_deps.find_spec", lambda _: None)
    words = ("--stage1", "a.pth", "--stage2", "b.pth", "--bank", "c", "--out", tmp_path)
    result = call("export", *words)
    assert_one_line(result, 1)
    assert isinstance(error_of(result), MissingDependencyError)


def test_a_batch_of_an_unknown_format(case: Path, tmp_path: Path) -> None:
    words = ("--format", "tiff", "--prompt", "liver in CT", "--no-preview")
    result = call("batch", case, tmp_path / "results", *words)
    assert error_of(result).code == "format-unknown"
    assert not (tmp_path / "results").exists()
