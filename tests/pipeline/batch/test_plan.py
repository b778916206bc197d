"""What a batch's cases are called, what is done with each, and where their files go."""

from pathlib import Path

import numpy as np
import pytest

from medals_rt.common.errors import InputError
from medals_rt.pipeline.batch import Batch, plan_batch
from medals_rt.pipeline.batch.plan import BatchPlan
from medals_rt.pipeline.batch.remote_files import RemoteFiles
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.output_grid import GridRequest
from tests.dicom import write_series
from tests.errors import raises
from tests.pipeline.batch.helpers import plan, results, write_json

LIVER = ["Liver in abdominal CT"]


def test_another_format_and_another_place_for_reports(empty_scans: Path, tmp_path: Path) -> None:
    found = plan(
        empty_scans,
        out=tmp_path / "out",
        reports=tmp_path / "r",
        format="npz",
        preview=False,
    )
    assert results(found) == {"a": "a.npz", "b": "b.npz", "deep/er/c": "deep/er/c.npz"}
    assert all(case.job.preview is None for case in found.cases)
    assert found.cases[0].job.report == tmp_path / "r" / "reports" / "a.json"
    assert found.cases[0].record == tmp_path / "r" / ".medals-rt" / "a.json"


def test_two_cases_of_one_name_are_refused(empty_scans: Path, tmp_path: Path) -> None:
    (empty_scans / "B.nii").write_bytes(b"")
    (empty_scans / "a.nii").write_bytes(b"")
    with raises(InputError, "results-alike", "B.nii", "b.npz", "a.nii and"):
        plan(empty_scans, out=tmp_path / "out")


def test_results_never_replace_inputs(empty_scans: Path) -> None:
    with raises(InputError, "input-overwritten"):
        plan(empty_scans / "b.npz", empty_scans / "a.nii.gz", out=empty_scans)


def test_results_never_replace_data_files_of_inputs(empty_scans: Path, tmp_path: Path) -> None:
    header = "ObjectType = Image\nElementDataFile = b.zraw\n"
    (empty_scans / "x.mhd").write_text(header, encoding="utf-8")
    row = {"input": "x.mhd", "output": "b.mhd"}  # whose voxels would be b.zraw
    jobs = write_json(tmp_path / "jobs.json", [row])
    with raises(InputError, "input-overwritten"):
        plan(empty_scans, out=empty_scans, jobs=jobs)
    assert len(plan(empty_scans, out=tmp_path / "out", jobs=jobs).cases) == 1


def test_a_jobs_file_says_what_to_do(empty_scans: Path, tmp_path: Path) -> None:
    write_json(empty_scans / "p.json", {"3": "Spleen in abdominal CT"})
    rows = [
        {"input": "b.npz", "output": "one/liver.nii.gz", "sentences": LIVER, "window": "lung"},
        {"input": "b.npz", "output": "two", "prompts": "p.json", "preset": "release", "seed": 3},
        {"input": str(empty_scans / "a.nii.gz"), "kind": "lesion", "refinement": "none"},
        {"input": "deep", "series": "2", "spatial_prompts": "drawn.nrrd"},
    ]
    options = RunOptions(segment=SegmentOptions(seed=9, window="bone"))
    found = plan(
        empty_scans,
        out=tmp_path / "out",
        jobs=write_json(tmp_path / "jobs.json", rows),
        source=PromptSource(sentences=("Spleen in CT",)),
        options=options,
        format="npz",
    )
    assert results(found) == {
        "one/liver": "one/liver.nii.gz",
        "two": "two.npz",
        "a": "a.npz",
        "deep": "deep.npz",
    }
    liver, spleen, lesion, series = (case.job for case in found.cases)
    assert liver.source == PromptSource(sentences=tuple(LIVER))
    assert (liver.options.segment.window, liver.options.segment.seed) == ("lung", 9)
    assert spleen.source == PromptSource(file=empty_scans / "p.json")
    assert (spleen.options.segment.preset, spleen.options.segment.seed) == ("release", 3)
    assert lesion.source == PromptSource(sentences=("Spleen in CT",), kind="lesion")
    assert (lesion.options.segment.refinement, lesion.options.segment.window) == ("none", "bone")
    assert (series.series, series.spatial_prompts) == ("2", empty_scans / "drawn.nrrd")


def test_a_row_has_its_own_outputs(empty_scans: Path, tmp_path: Path) -> None:
    series = empty_scans / "series"
    series.mkdir()
    (series / "slice1").write_bytes(bytes(128) + b"DICM")
    rows = [
        {"input": "series", "output": "regions", "format": "rtstruct.dcm"},
        {"input": "series", "output": "report.dcm", "sr": True, "split": False},
        {"input": "b.npz", "format": "seg.nrrd", "crop": 5, "output_spacing": [1, 1, 3]},
        {"input": "a.nii.gz", "format": "same", "probabilities": True, "instances": True},
        {"input": "a.nii.gz", "output": "surface", "format": "glb", "mesh_reduction": 0.5},
    ]
    found = plan(
        empty_scans,
        out=tmp_path / "out",
        jobs=write_json(tmp_path / "jobs.json", rows),
        split=True,
        format="mha",
    )
    assert list(results(found).values()) == [
        "regions.rtstruct.dcm", "report.dcm", "b.seg.nrrd", "a.nii.gz", "surface.glb"
    ]  # fmt: skip
    regions, report, cut, maps, surface = (case.job for case in found.cases)
    out = tmp_path / "out"
    assert (regions.sr, regions.split) == (None, out / "regions")
    assert (report.sr, report.split) == (out / "report.sr.dcm", None)
    assert cut.grid == GridRequest((1.0, 1.0, 3.0), 5.0)
    assert all(job.grid.is_scans for job in (regions, report, maps, surface))
    assert (maps.probabilities, cut.probabilities) == (out / "a_probabilities", None)
    assert (maps.instances, cut.instances) == (out / "a_lesions.nii.gz", None)
    assert (surface.mesh_reduction, cut.mesh_reduction) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"format": "dcm", "crop": 5}, "grid-of-the-source"),
        ({"format": "nii.gz", "sr": True}, "report-without-seg"),
        ({"format": "rtstruct.dcm", "sr": True}, "report-without-seg"),
        ({"format": "nii.gz", "mesh_reduction": 0.5}, "no-mesh-to-reduce"),
        ({"output": "b.nii.gz", "format": "npz"}, "endings-differ"),
    ],
)
def test_a_row_that_contradicts_itself_stops_the_batch(
    empty_scans: Path, tmp_path: Path, row: dict[str, object], code: str
) -> None:
    rows = [{"input": "a.nii.gz"}, {"input": "b.npz", **row}]
    jobs = write_json(tmp_path / "jobs.json", rows)
    with raises(InputError, code, "jobs.json, job 2"):
        plan(empty_scans, out=tmp_path / "out", jobs=jobs)


@pytest.mark.parametrize(
    "name", ["../b", "/etc/b", "a/../../b", ".x", "a//b", "nul\0", "a/.medals"]
)
def test_results_stay_in_their_folder(empty_scans: Path, tmp_path: Path, name: str) -> None:
    jobs = write_json(tmp_path / "jobs.json", [{"input": "b.npz", "output": name}])
    if name == "a//b":  # the same as a/b
        assert list(results(plan(empty_scans, out=tmp_path / "out", jobs=jobs))) == ["a/b"]
        return
    with raises(InputError, "result-name-invalid", "jobs.json, job 1"):
        plan(empty_scans, out=tmp_path / "out", jobs=jobs)


def test_a_row_has_its_own_choice_of_images_and_post_processing(
    empty_scans: Path, tmp_path: Path
) -> None:
    rows = [
        {"input": "b.npz", "select": ["ECHO=2"], "postprocess": "off"},
        {"input": "a.nii.gz", "sentences": LIVER, "lesions": ["Liver tumors"]},
    ]
    jobs = write_json(tmp_path / "jobs.json", rows)
    first, second = plan(empty_scans, out=tmp_path / "out", jobs=jobs).cases
    assert first.job.select == ("ECHO=2",)
    assert first.job.options.segment.postprocess == "off"
    assert second.job.source == PromptSource(sentences=tuple(LIVER), lesions=("Liver tumors",))
    assert second.job.options.segment.postprocess == "auto"


def test_series_and_images_may_be_chosen_for_all_that_can_hold_several(
    empty_scans: Path, tmp_path: Path
) -> None:
    series = empty_scans / "series"
    series.mkdir()
    (series / "slice1").write_bytes(bytes(128) + b"DICM")
    found = plan(empty_scans, out=tmp_path / "out", series="3", select=("ECHO=2",))
    chosen = {case.name: (case.job.series, case.job.select) for case in found.cases}
    assert chosen.pop("series") == ("3", ("ECHO=2",))
    assert set(chosen.values()) == {(None, ())}
    jobs = write_json(
        tmp_path / "jobs.json",
        [{"input": "series", "series": "7"}, {"input": "series", "output": "b", "resample": True}],
    )
    found = plan(empty_scans, out=tmp_path / "out", jobs=jobs, series="3", select=("ECHO=2",))
    first, second = (case.job for case in found.cases)
    assert (first.series, first.select, first.resample) == ("7", ("ECHO=2",), False)
    assert (second.series, second.select, second.resample) == ("3", ("ECHO=2",), True)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"output": "a", "probabilities": True}, {"output": "a_probabilities/liver"}),
        ({"output": "a", "probabilities": True}, {"output": "A_Probabilities/liver"}),
        ({"output": "a", "probabilities": True}, {"output": "a_probabilities", "split": True}),
        ({"output": "a", "split": True}, {"output": "a/liver"}),
    ],
)
def test_results_never_lie_among_the_classes_of_another_case(
    empty_scans: Path, tmp_path: Path, first: dict[str, object], second: dict[str, object]
) -> None:
    rows = [{"input": "a.nii.gz", **first}, {"input": "b.npz", "format": "nii.gz", **second}]
    for order in (rows, rows[::-1]):
        jobs = write_json(tmp_path / "jobs.json", order)
        with raises(InputError, "results-alike"):
            plan(empty_scans, out=tmp_path / "out", jobs=jobs)


@pytest.mark.parametrize(
    ("row", "other"),
    [
        ({"output": "drawn.nii.gz"}, {"spatial_prompts": "drawn.nii.gz"}),
        ({"output": "x", "instances": True}, {"spatial_prompts": "x_lesions.npz"}),
        ({"output": "p"}, {"prompts": "reports/p.json"}),
        ({"output": "deep/er", "split": True}, {"input": "deep/er/c.NRRD"}),
        ({"output": "x", "probabilities": True}, {"spatial_prompts": "x_probabilities/l.nii.gz"}),
    ],
)
def test_no_file_of_a_case_replaces_what_another_starts_from(
    empty_scans: Path, row: dict[str, object], other: dict[str, object], tmp_path: Path
) -> None:
    (empty_scans / "reports").mkdir()
    write_json(empty_scans / "reports" / "p.json", {"1": "Liver in abdominal CT"})
    rows = [{"input": "b.npz", **row}, {"input": "a.nii.gz", "output": "y.seg.nrrd", **other}]
    jobs = write_json(tmp_path / "jobs.json", rows)
    with raises(InputError, "input-overwritten"):
        plan(empty_scans, out=empty_scans, jobs=jobs)
    assert len(plan(empty_scans, out=tmp_path / "out", jobs=jobs).cases) == 2


def test_a_folder_in_the_place_of_another_cases_file(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for name in ("a.npz", "a.json/x.npz"):
        (scans / name).parent.mkdir(parents=True, exist_ok=True)
        (scans / name).write_bytes(b"")
    with raises(InputError, "results-alike"):
        plan(scans, out=tmp_path / "out")
    (scans / "a.npz").rename(scans / "b.npz")
    assert len(plan(scans, out=tmp_path / "out").cases) == 2


def test_copies_in_another_folder(tmp_path: Path) -> None:
    """All places behind URLs move, others don't."""
    remote = RemoteFiles(tmp_path / "here")
    scan = remote.place(Path("s3://clinic/scans/a.npz"))
    scan.parent.mkdir(parents=True)
    scan.write_bytes(b"")
    asked = Batch(scan.parent, remote.place(Path("s3://clinic/out")), reports=tmp_path / "reports")
    (case,) = plan_batch(asked, remote).cases
    moved = case.in_folder(tmp_path / "there")
    assert moved.job.input == tmp_path / "there" / "s3" / "clinic" / "scans" / "a.npz"
    assert moved.remote.shown(moved.job.output) == "s3://clinic/out/a.npz"
    assert moved.job.output_files() == moved.files()
    assert (moved.record, moved.name) == (case.record, case.name)


def test_a_slice_of_a_scan_is_no_place_for_a_result(empty_scans: Path, tmp_path: Path) -> None:
    slices = empty_scans / "ser"
    write_series(slices, np.arange(120, dtype=np.int16).reshape(4, 5, 6), np.eye(4))
    (slices / "IM0001").rename(slices / "slice.dcm")

    def found(name: str) -> BatchPlan:
        jobs = write_json(tmp_path / "jobs.json", [{"input": "ser", "output": f"ser/{name}"}])
        return plan(empty_scans, out=empty_scans, jobs=jobs)

    with raises(InputError, "input-overwritten"):
        found("slice.dcm")
    assert len(found("another.dcm").cases) == 1
