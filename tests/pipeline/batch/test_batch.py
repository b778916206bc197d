"""`medals-rt batch`: what is written and said, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.notes import Note, warning
from medals_rt.pipeline.batch import run as batch_run
from tests.pipeline.batch.helpers import (
    KIDNEY,
    SHAPE,
    Result,
    batch,
    files_below,
    statuses,
    write_case,
)
from tests.pipeline.batch.helpers import write_json as write_json_file


def test_every_case_gets_its_files(tiny_bundle: Bundle, scans: Path, out: Path) -> None:
    result = batch(tiny_bundle.folder, scans, out, "--statistics")
    assert result.exit_code == 0, result.output
    names = ("case0", "case1", "case2")
    assert files_below(out) == sorted(
        ["index.html", "lesions.csv", "statistics.csv", "summary.csv"]
        + [f"{name}.npz" for name in names]
        + [f"previews/{name}.png" for name in names]
        + [f"reports/{name}.json" for name in names]
    )
    assert statuses(out) == dict.fromkeys(names, "done")
    assert result.stdout.startswith("3 done\n")
    assert [line[:5] for line in result.stderr.splitlines()] == ["[1/3]", "[2/3]", "[3/3]"]
    with np.load(out / "case1.npz", allow_pickle=True) as found:
        assert found["segs"].shape == SHAPE
        assert found["text_prompts"].item() == KIDNEY
        voxels = int((found["segs"] == 5).sum())
    row = (out / "statistics.csv").read_text(encoding="utf-8").splitlines()[2].split(",")
    assert row[:4] == ["case1", "5", "Right kidney", str(voxels)]


def test_a_batch_gives_what_run_gives(
    run: Callable[..., Result], tiny_bundle: Bundle, scans: Path, out: Path
) -> None:
    from typer.testing import CliRunner

    from medals_rt.cli import app

    assert run().exit_code == 0
    alone = out / "alone.npz"
    words = ["run", "--input", scans / "case2.npz", "--output", alone, "--precision", "fp32"]
    words += ["--bundle", tiny_bundle.folder, "--runner", "onnxruntime", "--quiet"]
    assert CliRunner().invoke(app, list(map(str, words))).exit_code == 0
    assert alone.read_bytes() == (out / "case2.npz").read_bytes()


def test_what_cannot_be_used_is_said_before_any_work(
    run: Callable[..., Result], scans: Path, out: Path, tmp_path: Path
) -> None:
    jobs = write_json_file(tmp_path / "jobs.json", [{"input": "case0.npz", "seed": "x"}])
    for words, said in {
        ("--prompts", tmp_path / "none.json"): "none.json",
        ("--prompts", jobs, "--prompt", "liver in CT"): "not both",
        ("--jobs", jobs): "jobs.json, job 1",
        ("--reports", scans / "case0.npz"): "can't write",
    }.items():
        result = run(*words)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert said in result.stderr
    result = batch(tmp_path / "nowhere", scans, out, "--no-preview")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr


def test_jobs_with_prompts_and_names_of_their_own(
    tiny_bundle: Bundle, tmp_path: Path, out: Path
) -> None:
    scans = tmp_path / "plain"
    write_case(scans / "a.npz", prompts=None)
    table = tmp_path / "jobs.csv"
    table.write_text(
        "input,sentences,kind,output,lesions,postprocess\n"
        "a.npz,liver in CT;right kidney in CT,,organs,,off\n"
        "a.npz,adrenocortical carcinoma on CT,lesion,deep/lesion.npz,,\n"
        "a.npz,liver in CT,,both,adrenocortical carcinoma,\n",
        encoding="utf-8",
    )
    result = batch(tiny_bundle.folder, scans, out, "--jobs", table, "--no-preview", "--quiet")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    with np.load(out / "deep" / "lesion.npz") as found:
        assert "instances" in found
    report = json.loads((out / "reports" / "organs.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in report["classes"]] == ["Liver", "Right kidney"]
    assert report["postprocess"] == "off"
    report = json.loads((out / "reports" / "both.json").read_text(encoding="utf-8"))
    assert [(each["label"], each["kind"]) for each in report["classes"]] == [
        (1, "anatomy"),
        (2, "lesion"),
    ]


NOTES = (
    warning("notice", "for tests only"),
    warning("time-budget", "time budget: less\nwas done"),
    Note("cut-by-edge", "at the edge"),
)


def test_warnings_of_a_case_are_shown_by_name_also_when_quiet(
    run: Callable[..., Result], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = batch_run.segment_job

    def segment(*given: Any) -> Any:
        result = original(*given)
        return replace(result, report=replace(result.report, notes=NOTES))

    monkeypatch.setattr(batch_run, "segment_job", segment)
    result = run()
    assert result.exit_code == 0
    warnings = [f"warning: case{number}: time budget: less was done" for number in range(3)]
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("warning: ")] == warnings
    assert sum(line.endswith("; at the edge") for line in lines) == 3
    assert result.stdout.count("time budget: less was done; at the edge") == 3
    table = (out / "summary.csv").read_text(encoding="utf-8")
    assert table.count(",time budget: less was done,at the edge\n") == 3
    assert "for tests only" not in table + result.output  # the notice is about all cases
    assert run("--quiet", "--seed", "1").stderr.splitlines() == warnings


def test_folders_without_an_image_are_passed_over(
    tiny_bundle: Bundle, scans: Path, out: Path
) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    drawn = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    drawn.SOPClassUID, drawn.Modality = RTStructureSetStorage, "RTSTRUCT"
    drawn.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    (scans / "drawn").mkdir()
    drawn.save_as(scans / "drawn" / "a.dcm", enforce_file_format=True)
    for name in ("a.mnc", "b.mnc", "c.mnc", "d.mnc"):
        (scans / name).write_bytes(b"")
    result = batch(tiny_bundle.folder, scans, out, "--no-preview")
    assert result.exit_code == 0, result.output
    assert statuses(out) == {"drawn": "skipped"} | dict.fromkeys(
        ("case0", "case1", "case2"), "done"
    )
    assert "drawn: passed over: " in result.stderr
    assert "1 without an image" in result.stdout
    (unread,) = [line for line in result.stderr.splitlines() if "not read" in line]
    assert unread.endswith("formats not read are passed over: a.mnc, b.mnc, c.mnc and 1 more")
    assert "drawn" not in batch(tiny_bundle.folder, scans, out, "--no-preview", "--quiet").stderr


def test_the_notice_of_the_model_is_shown_once(
    tiny_bundle: Bundle, scans: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "notice", "for tests only")
    result = batch(tiny_bundle.folder, scans, out)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: for tests only\n") == 1
    assert "for tests only" not in result.stdout
    assert (out / "index.html").read_text(encoding="utf-8").count("for tests only") == 1
    report = json.loads((out / "reports" / "case0.json").read_text(encoding="utf-8"))
    assert report["bundle"]["notice"] == "for tests only"


def test_one_prompts_file_for_all(run: Callable[..., Result], out: Path, tmp_path: Path) -> None:
    assert run("--prompts", write_json_file(tmp_path / "p.json", KIDNEY)).exit_code == 0
    rows = (out / "summary.csv").read_text(encoding="utf-8").splitlines()
    assert all(",CT,anatomy,1," in row for row in rows[1:])
    report = json.loads((out / "reports" / "case0.json").read_text(encoding="utf-8"))
    assert report["classes"][0]["name"] == "Right kidney"
