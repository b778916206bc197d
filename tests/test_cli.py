"""The command line: what is written, what is said, exit codes, and nothing half done."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from medals_rt.bundle import Bundle
from medals_rt.cli import app
from medals_rt.errors import RunnerError

Result = Any  # of typer's runner, whose module has moved between versions

LIVER = {"1": "Liver in abdominal CT", "instance_label": 0}
SHAPE = (12, 20, 24)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_one_line(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


def write_case(path: Path, **changes: object) -> Path:
    rng = np.random.default_rng(0)
    fields = {
        "imgs": (rng.random(SHAPE) * 255).astype(np.float32),
        "spacing": np.array([2.0, 2.0, 3.0]),
        "text_prompts": np.array(LIVER, dtype=object),
        **changes,
    }
    np.savez(path, **{key: value for key, value in fields.items() if value is not None})
    return path


@pytest.fixture
def case(tmp_path: Path) -> Path:
    return write_case(tmp_path / "case.npz")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def run(tiny_bundle: Bundle, case: Path, out: Path) -> Callable[..., Result]:
    """`medals-rt run` on the tiny bundle; keyword arguments replace or (None) leave out options."""

    def invoke(*flags: object, **changes: object) -> Result:
        options = {
            "input": case,
            "output": out / "seg.npz",
            "bundle": tiny_bundle.folder,
            "precision": "fp32",
            **changes,
        }
        words: list[object] = []
        for key, value in options.items():
            if value is not None:
                words += [f"--{key.replace('_', '-')}", value]
        return call("run", *words, *flags)

    return invoke


def test_run_writes_what_was_asked_for(run: Callable[..., Result], out: Path) -> None:
    files = {"report": out / "new" / "report.json", "preview": out / "new" / "preview.png"}
    result = run(**files)
    assert result.exit_code == 0, result.output
    assert "Liver" in result.stdout
    assert result.stderr == ""  # no progress bar where there is no terminal
    with np.load(out / "seg.npz", allow_pickle=True) as found:
        assert found["segs"].shape == SHAPE
        assert set(np.unique(found["segs"])) <= {0, 1}
        assert found["spacing"].tolist() == [2.0, 2.0, 3.0]
        assert found["text_prompts"].item() == LIVER
        voxels = int((found["segs"] == 1).sum())
    report = json.loads(files["report"].read_text())
    (liver,) = report["classes"]
    assert (liver["name"], liver["voxels"]) == ("Liver", voxels)
    assert liver["volume_ml"] == pytest.approx(voxels * 12 / 1000)
    assert {stage["name"] for stage in report["stages"]} >= {"coarse"}
    assert report["seconds_per_class"] > 0
    assert report["budget_seconds_per_class"] == 60
    assert files["preview"].read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == [
        "preview.png",
        "report.json",
        "seg.npz",
    ]


def test_run_is_repeatable_and_quiet(run: Callable[..., Result], out: Path) -> None:
    for name in ("a.npz", "b.npz"):
        result = run("--quiet", output=out / name, seed=7)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    with np.load(out / "a.npz") as a, np.load(out / "b.npz") as b:
        np.testing.assert_array_equal(a["segs"], b["segs"])


def test_prompts_from_a_file_and_from_the_line(
    run: Callable[..., Result], tmp_path: Path, out: Path
) -> None:
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps({"5": "Right kidney in CT", "instance_label": 0}))
    assert run(prompts=file).exit_code == 0
    with np.load(out / "seg.npz") as found:
        assert set(np.unique(found["segs"])) <= {0, 5}
    result = run("--prompt", "liver on CT", "--prompt", "right kidney on CT", quiet=None)
    assert result.exit_code == 0, result.output
    assert "Right kidney" in result.stdout


def test_lesions_and_the_release_preset(run: Callable[..., Result], out: Path) -> None:
    lesion = ("--prompt", "adrenocortical carcinoma on CT", "--kind", "lesion")
    result = run(*lesion)
    assert result.exit_code == 0, result.output
    assert "lesions" in result.stdout
    with np.load(out / "seg.npz") as found:
        assert found["instances"].shape == SHAPE
    assert run(*lesion, preset="release").exit_code == 0
    with np.load(out / "seg.npz") as found:
        assert "instances" not in found
        assert set(np.unique(found["segs"])) <= {0, 1}


def test_hybrid_mode(run: Callable[..., Result], tmp_path: Path) -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[2:9, 4:15, 4:15] = 1
    file = tmp_path / "drawn.npz"
    np.savez(file, segs=drawn, spacing=np.array([2.0, 2.0, 3.0]))
    for refinement in ("masked", "unmasked"):
        result = run(spatial_prompts=file, refinement=refinement)
        assert result.exit_code == 0, result.output


def test_an_annotation_that_does_not_fit(
    run: Callable[..., Result], tmp_path: Path, out: Path
) -> None:
    file = tmp_path / "drawn.npz"
    np.savez(file, segs=np.ones((3, 3, 3), np.uint8), spacing=np.array([2.0, 2.0, 3.0]))
    assert_one_line(run(spatial_prompts=file), 2, "another grid")
    np.savez(file, segs=np.ones(SHAPE, np.uint8), spacing=np.array([2.0, 2.0, 5.0]))
    assert_one_line(run(spatial_prompts=file), 2, "another grid")
    np.savez(file, segs=np.full(SHAPE, 9, np.uint8), spacing=np.array([2.0, 2.0, 3.0]))
    assert_one_line(run(spatial_prompts=file), 2, "no prompt names", "9")
    assert not list(out.iterdir())


BROKEN_CASES = {
    "no image": ({"imgs": None}, "imgs"),
    "no spacing": ({"spacing": None}, "spacing"),
    "two dimensions": ({"imgs": np.zeros((4, 4))}, "(4, 4)"),
    "four dimensions": ({"imgs": np.zeros((2, 4, 4, 4))}, "(2, 4, 4, 4)"),
    "empty": ({"imgs": np.zeros((0, 4, 4))}, "empty"),
    "NaN": ({"imgs": np.full(SHAPE, np.nan)}, "NaN"),
    "infinite": ({"imgs": np.full(SHAPE, np.inf)}, "infinite"),
    "complex": ({"imgs": np.zeros(SHAPE, complex)}, "complex"),
    "empty spacing": ({"spacing": np.array([])}, "spacing"),
    "zero spacing": ({"spacing": np.array([1.0, 0.0, 1.0])}, "spacing"),
    "negative spacing": ({"spacing": np.array([1.0, 1.0, -1.0])}, "spacing"),
    "NaN spacing": ({"spacing": np.array([1.0, 1.0, np.nan])}, "spacing"),
    "no prompts": ({"text_prompts": None}, "--prompts"),
    "no class": ({"text_prompts": {"instance_label": 0}}, "prompt"),
    "unknown class": ({"text_prompts": {"1": "Livre in CT", "instance_label": 0}}, "Liver"),
    "no label": ({"text_prompts": {"liver": "Liver in CT"}}, "'liver'"),
    "one label twice": ({"text_prompts": {"1": "Liver in CT", "01": "Spleen in CT"}}, "twice"),
    "two labels of one class": ({"text_prompts": {"1": "Liver in CT", "2": "liver, CT"}}, "both"),
    "two modalities": ({"text_prompts": {"1": "Liver in CT", "2": "Spleen in MRI"}}, "modalities"),
    "bad kind": ({"text_prompts": {"1": "Liver in CT", "instance_label": 2}}, "instance_label"),
    "not in the bundle": ({"text_prompts": {"1": "Spleen in CT"}}, "Spleen"),
}


@pytest.mark.parametrize("name", BROKEN_CASES)
def test_a_case_that_cannot_be_used(
    run: Callable[..., Result], tmp_path: Path, out: Path, name: str
) -> None:
    changes, word = BROKEN_CASES[name]
    if isinstance(changes.get("text_prompts"), dict):
        changes = {"text_prompts": np.array(changes["text_prompts"], dtype=object)}
    broken = write_case(tmp_path / "broken.npz", **changes)
    assert_one_line(run(input=broken), 2, word)
    assert not list(out.iterdir())


class Malice:
    """Unpickled the usual way, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def test_a_pickle_runs_nothing(run: Callable[..., Result], tmp_path: Path, out: Path) -> None:
    made = tmp_path / "made"
    prompts = np.array({"1": Malice(made)}, dtype=object)
    assert_one_line(run(input=write_case(tmp_path / "evil.npz", text_prompts=prompts)), 2)
    assert not made.exists()
    assert not list(out.iterdir())


def test_files_that_cannot_be_used(
    run: Callable[..., Result], case: Path, tmp_path: Path, out: Path
) -> None:
    before = case.read_bytes()
    assert_one_line(run(input=tmp_path / "missing.npz"), 2, "missing.npz")
    assert_one_line(run(output=case), 2, "overwrite")
    assert_one_line(run(report=out / "seg.npz"), 2, "different names")
    assert_one_line(run(output=out / "seg.tiff"), 2, ".nii.gz")
    assert_one_line(run(output=case / "below" / "seg.npz"), 2, "can't write")
    assert_one_line(run(report=out), 2, "folder")
    assert_one_line(run(prompts=tmp_path / "missing.json"), 2, "missing.json")
    assert_one_line(run("--prompt", "liver on CT", prompts=case), 2, "not both")
    assert_one_line(run(bundle=tmp_path / "missing"), 2, "missing")
    (tmp_path / "noise.npz").write_bytes(b"noise")
    assert_one_line(run(input=tmp_path / "noise.npz"), 2, "noise.npz")
    assert case.read_bytes() == before
    assert not list(out.iterdir())


def test_a_damaged_bundle(
    run: Callable[..., Result], tiny_bundle: Bundle, tmp_path: Path, out: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.folder, copy)
    graph = next(copy.rglob("*.onnx"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    assert_one_line(run(bundle=copy), 2, "SHA-256", graph.name)
    assert_one_line(call("info", "--bundle", copy), 2, "SHA-256")
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--input"],
        ["run", "--input", "x.npz", "--nonsense"],
        ["run", "--input", "x.npz", "--preset", "newest"],
        ["run", "--input", "x.npz", "--seed", "-1"],
        ["run", "--input", "x.npz", "--threads", "0"],
        ["run", "--input", "x.npz", "--runner", "abacus"],
        ["evaluate", "one"],
        ["nonsense"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RunnerError("the library refused\nthe graph"), 1, ("refused the graph",)),
        (ZeroDivisionError("surprise"), 1, ("ZeroDivisionError: surprise", "--debug")),
        (MemoryError("3 GiB"), 1, ("out of memory", "3 GiB")),
    ],
)
def test_failures(
    run: Callable[..., Result],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    words: tuple[str, ...],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("medals_rt.segmenter.Segmenter.segment", fail)
    assert_one_line(run(), code, *words)
    result = run("--debug")
    assert result.exit_code == code
    assert "Traceback" in result.stderr
    assert not list(out.iterdir())


def test_an_interrupt_that_a_library_wraps_is_one(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("medals_rt.segmenter.Segmenter.segment", fail)
    result = run()
    assert result.exit_code == 130
    assert result.stderr == "interrupted; no unfinished file is left behind\n"


def test_an_interrupt_while_writing_leaves_nothing(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(file: object, **_: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("numpy.savez_compressed", interrupt)
    result = run()
    assert result.exit_code == 130
    assert result.stderr.count("\n") == 1
    assert "interrupted" in result.stderr
    assert not list(out.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")]
)
def test_signals_end_a_real_process(number: int, code: int, said: str) -> None:
    script = (
        # a job in the background ignores Ctrl-C, and so do its children: begin as in a terminal
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time, medals_rt.job\n"
        "def wait(*_):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "medals_rt.job.run_job = wait\n"
        "sys.argv = ['medals-rt', 'run', '--input', 'x.npz']\n"
        "from medals_rt.cli import main\n"
        "main()\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert said in errors
    assert "Traceback" not in errors


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
    monkeypatch.setattr("medals_rt.cli.export.find_spec", lambda _: None)
    words = ("--stage1", "a.pth", "--stage2", "b.pth", "--bank", "c", "--out", tmp_path)
    assert_one_line(call("export", *words), 1, "medals-rt[export]")
