"""The installed command, and the commands that say things: info, version, prompts, plan, export."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from medals_rt.bundle.bundle import Bundle
from tests.cli.helpers import Result, assert_one_line, call


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


def test_info(tiny_bundle: Bundle, tmp_path: Path) -> None:
    result = call("info", "--bundle", tiny_bundle.folder)
    assert result.exit_code == 0, result.output
    assert tiny_bundle.hash in result.stdout
    assert "16 x 16 x 8" in result.stdout
    content = json.loads(call("info", "--bundle", tiny_bundle.folder, "--json").stdout)
    assert content["hash"] == tiny_bundle.hash
    assert content["format_version"] == 2
    assert_one_line(call("info", "--bundle", tmp_path), 2, "bundle.json")


def test_version() -> None:
    import medals_rt

    assert f"medals-rt {medals_rt.__version__}" in call("version").stdout
    assert json.loads(call("version", "--json").stdout)["medals-rt"] == medals_rt.__version__


def test_prompts() -> None:
    found = json.loads(call("prompts", "Liver in abdominal CT", "--json").stdout)
    assert found == {"modality": "CT", "class": "Liver", "id": 1, "matched": found["matched"]}
    assert "Liver" in call("prompts", "liver, CT").stdout
    assert_one_line(call("prompts", "Livre on CT"), 2, "Liver")
    assert_one_line(call("prompts"), 2, "--list")
    assert_one_line(call("prompts", "liver, CT", "--list"), 2, "one of")
    listed = json.loads(call("prompts", "--list", "--json").stdout)
    assert len(listed) == 243
    listed = json.loads(call("prompts", "--list", "--modality", "CT", "--json").stdout)
    assert len(listed) == 137
    assert {row["modality"] for row in listed} == {"CT"}
    assert "Liver" in call("prompts", "--list", "--kind", "anatomy").stdout


def test_plan_of_a_case(tiny_bundle: Bundle, case: Path, run: Callable[..., Result]) -> None:
    arguments = ("plan", "--input", case, "--bundle", tiny_bundle.folder)
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
    assert_one_line(call("plan", "--input", case, "--shape", "1,1,1"), 2, "--shape")
    assert_one_line(call("plan", "--shape", "1,1,1"), 2, "--spacing")


def test_export_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medals_rt.common.optional_deps.find_spec", lambda _: None)
    words = ("--stage1", "a.pth", "--stage2", "b.pth", "--bank", "c", "--out", tmp_path)
    assert_one_line(call("export", *words), 1, "medals-rt[export]")
