"""Which cases a batch finds, what they are called, and where their files go."""

from pathlib import Path

import pytest

from medals_rt.common.errors import InputError, MissingFileError
from medals_rt.pipeline.batch import BatchPlan, BesideLabels, plan_batch
from medals_rt.pipeline.batch.store import content_sha256
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.output_grid import GridRequest
from tests.errors import raises
from tests.pipeline.batch.helpers import write_json

LIVER = ["Liver in abdominal CT"]


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of cases; what stands in the files is nobody's concern here."""
    folder = tmp_path / "scans"
    for name in ("b.npz", "a.nii.gz", "deep/er/c.NRRD", "notes.md", ".hidden.npz", ".x/d.npz"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return folder


def plan(*inputs: Path, out: Path, **changes: object) -> BatchPlan:
    options = {"source": PromptSource(), "options": RunOptions(), **changes}
    return plan_batch(inputs, out, **options)


def results(found: BatchPlan) -> dict[str, str]:
    return {
        case.name: case.job.output.relative_to(found.results).as_posix() for case in found.cases
    }


def test_a_folder_with_all_below_it(scans: Path, tmp_path: Path) -> None:
    found = plan(scans, out=tmp_path / "out")
    assert results(found) == {"a": "a.nii.gz", "b": "b.npz", "deep/er/c": "deep/er/c.nrrd"}
    (deep,) = (case for case in found.cases if case.name == "deep/er/c")
    assert deep.job.report == tmp_path / "out" / "reports" / "deep" / "er" / "c.json"
    assert deep.job.preview == tmp_path / "out" / "previews" / "deep" / "er" / "c.png"
    assert deep.record == tmp_path / "out" / ".medals-rt" / "deep" / "er" / "c.json"


def test_another_format_and_another_place_for_reports(scans: Path, tmp_path: Path) -> None:
    found = plan(
        scans,
        out=tmp_path / "out",
        reports=tmp_path / "r",
        ending=".npz",
        beside=BesideLabels(preview=False),
    )
    assert results(found) == {"a": "a.npz", "b": "b.npz", "deep/er/c": "deep/er/c.npz"}
    assert all(case.job.preview is None for case in found.cases)
    assert found.cases[0].job.report == tmp_path / "r" / "reports" / "a.json"
    assert found.cases[0].record == tmp_path / "r" / ".medals-rt" / "a.json"


def test_folders_of_dicom_files_are_cases(scans: Path, tmp_path: Path) -> None:
    series = scans / "patient" / "series"
    (series / "more").mkdir(parents=True)
    for name in ("slice1", "slice2", "more/slice3"):
        (series / name).write_bytes(bytes(128) + b"DICM")
    (scans / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (scans / "packed.zip").write_bytes(b"PK")
    found = plan(scans, out=tmp_path / "out")
    assert results(found) == {
        "a": "a.nii.gz",
        "b": "b.npz",
        "packed": "packed.dcm",
        "deep/er/c": "deep/er/c.nrrd",
        "patient/series": "patient/series.dcm",
    }
    assert results(plan(series, out=tmp_path / "out")) == {"series": "series.dcm"}


def test_results_inside_the_inputs_are_no_cases(scans: Path) -> None:
    out = scans / "out"
    out.mkdir()
    (out / "a.npz").write_bytes(b"")
    assert set(results(plan(scans, out=out))) == {"a", "b", "deep/er/c"}


def test_results_of_other_batches_are_no_cases(scans: Path, tmp_path: Path) -> None:
    (scans / "before" / ".medals-rt").mkdir(parents=True)
    (scans / "before" / "a.npz").write_bytes(b"")
    found = plan(scans, out=tmp_path / "out")
    assert set(results(found)) == {"a", "b", "deep/er/c"}
    assert found.earlier == (scans / "before",)
    assert set(results(plan(scans / "before", out=tmp_path / "out"))) == {"a"}


def test_links_are_followed_once(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.npz").write_bytes(b"")
    (scans / "linked").symlink_to(tmp_path / "elsewhere")
    (scans / "self").symlink_to(scans)
    (scans / "up").symlink_to(tmp_path)
    (scans / "a_link").symlink_to(scans / "deep")  # sorts first, and takes no case's name
    found = plan(scans, out=tmp_path / "out")
    assert set(results(found)) == {"a", "b", "deep/er/c", "linked/d"}


def test_files_patterns_and_lists(scans: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("scans/b.npz\n\nscans/deep\n", encoding="utf-8")
    for inputs, names in {
        (scans / "b.npz", scans / "a.nii.gz"): ["b", "a"],
        (scans / "*.npz",): ["b"],
        (scans / "**" / "*.*z",): ["a", "b"],
        (listed,): ["b", "er/c"],
    }.items():
        assert [case.name for case in plan(*inputs, out=tmp_path / "out").cases] == names


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("none.npz", ("file-missing", "none.npz")),
        ("*.npy", ("nothing-matches",)),
        ("empty", ("no-case",)),
    ],
)
def test_nothing_to_do_is_said(
    scans: Path, tmp_path: Path, name: str, error: tuple[str, ...]
) -> None:
    (scans / "empty").mkdir()
    with raises(InputError, *error):
        plan(scans / name, out=tmp_path / "out")


def test_two_cases_of_one_name_are_refused(scans: Path, tmp_path: Path) -> None:
    (scans / "B.nii").write_bytes(b"")
    (scans / "a.nii").write_bytes(b"")
    with raises(InputError, "results-alike", "B.nii", "b.npz", "a.nii and"):
        plan(scans, out=tmp_path / "out")


def test_results_never_replace_inputs(scans: Path) -> None:
    with raises(InputError, "input-overwritten"):
        plan(scans / "b.npz", scans / "a.nii.gz", out=scans)


def test_a_jobs_file_says_what_to_do(scans: Path, tmp_path: Path) -> None:
    write_json(scans / "p.json", {"3": "Spleen in abdominal CT"})
    rows = [
        {"input": "b.npz", "output": "one/liver.nii.gz", "sentences": LIVER, "window": "lung"},
        {"input": "b.npz", "output": "two", "prompts": "p.json", "preset": "release", "seed": 3},
        {"input": str(scans / "a.nii.gz"), "kind": "lesion", "refinement": "none"},
        {"input": "deep", "series": "2", "spatial_prompts": "drawn.nrrd"},
    ]
    options = RunOptions(segment=SegmentOptions(seed=9, window="bone"))
    found = plan(
        scans,
        out=tmp_path / "out",
        jobs=write_json(tmp_path / "jobs.json", rows),
        source=PromptSource(sentences=("Spleen in CT",)),
        options=options,
        ending=".npz",
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
    assert spleen.source == PromptSource(file=scans / "p.json")
    assert (spleen.options.segment.preset, spleen.options.segment.seed) == ("release", 3)
    assert lesion.source == PromptSource(sentences=("Spleen in CT",), kind="lesion")
    assert (lesion.options.segment.refinement, lesion.options.segment.window) == ("none", "bone")
    assert (series.series, series.spatial_prompts) == ("2", scans / "drawn.nrrd")


def test_a_row_has_its_own_outputs(scans: Path, tmp_path: Path) -> None:
    series = scans / "series"
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
        scans,
        out=tmp_path / "out",
        jobs=write_json(tmp_path / "jobs.json", rows),
        beside=BesideLabels(split=True),
        ending=".mha",
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
    scans: Path, tmp_path: Path, row: dict[str, object], code: str
) -> None:
    rows = [{"input": "a.nii.gz"}, {"input": "b.npz", **row}]
    jobs = write_json(tmp_path / "jobs.json", rows)
    with raises(InputError, code, "jobs.json, job 2"):
        plan(scans, out=tmp_path / "out", jobs=jobs)


@pytest.mark.parametrize(
    "name", ["../b", "/etc/b", "a/../../b", ".x", "a//b", "nul\0", "a/.medals"]
)
def test_results_stay_in_their_folder(scans: Path, tmp_path: Path, name: str) -> None:
    jobs = write_json(tmp_path / "jobs.json", [{"input": "b.npz", "output": name}])
    if name == "a//b":  # the same as a/b
        assert list(results(plan(scans, out=tmp_path / "out", jobs=jobs))) == ["a/b"]
        return
    with raises(InputError, "result-name-invalid", "jobs.json, job 1"):
        plan(scans, out=tmp_path / "out", jobs=jobs)


def test_jobs_start_from_one_folder(scans: Path, tmp_path: Path) -> None:
    jobs = write_json(tmp_path / "jobs.json", [{"input": "b.npz"}])
    for inputs in ((scans, scans), (scans / "b.npz",)):
        with raises(InputError, "jobs-folder-missing"):
            plan(*inputs, out=tmp_path / "out", jobs=jobs)
    with raises(MissingFileError, "jobs-file-missing"):
        plan(scans, out=tmp_path / "out", jobs=tmp_path / "none.json")


def test_sentences_of_a_row_are_read_before_any_case_is_run(scans: Path, tmp_path: Path) -> None:
    rows = [{"input": "b.npz"}, {"input": "a.nii.gz", "sentences": ["Livre on CT"]}]
    jobs = write_json(tmp_path / "jobs.json", rows)
    with raises(InputError, "no-class", "jobs.json, job 2", "Livre"):
        plan(scans, out=tmp_path / "out", jobs=jobs)


def test_images_that_are_not_read_are_named(scans: Path, tmp_path: Path) -> None:
    for name in ("brain.mgz", "deep/er/slide.TIFF", "notes.md", ".hidden.png"):
        (scans / name).parent.mkdir(parents=True, exist_ok=True)
        (scans / name).write_bytes(b"")
    found = plan(scans, out=tmp_path / "out")
    assert [path.name for path in found.unread] == ["brain.mgz", "slide.TIFF"]
    only = tmp_path / "only"
    only.mkdir()
    (only / "brain.mgz").write_bytes(b"")
    with raises(InputError, "no-case", "brain.mgz"):
        plan(only, out=tmp_path / "out")


def test_a_row_has_its_own_choice_of_images_and_post_processing(
    scans: Path, tmp_path: Path
) -> None:
    rows = [
        {"input": "b.npz", "select": ["ECHO=2"], "postprocess": "off"},
        {"input": "a.nii.gz", "sentences": LIVER, "lesions": ["Liver tumors"]},
    ]
    jobs = write_json(tmp_path / "jobs.json", rows)
    first, second = plan(scans, out=tmp_path / "out", jobs=jobs).cases
    assert first.job.select == ("ECHO=2",)
    assert first.job.options.segment.postprocess == "off"
    assert second.job.source == PromptSource(sentences=tuple(LIVER), lesions=("Liver tumors",))
    assert second.job.options.segment.postprocess == "auto"


def test_series_and_images_may_be_chosen_for_all_that_can_hold_several(
    scans: Path, tmp_path: Path
) -> None:
    series = scans / "series"
    series.mkdir()
    (series / "slice1").write_bytes(bytes(128) + b"DICM")
    found = plan(scans, out=tmp_path / "out", series="3", select=("ECHO=2",))
    chosen = {case.name: (case.job.series, case.job.select) for case in found.cases}
    assert chosen.pop("series") == ("3", ("ECHO=2",))
    assert set(chosen.values()) == {(None, ())}
    jobs = write_json(
        tmp_path / "jobs.json",
        [{"input": "series", "series": "7"}, {"input": "series", "output": "b", "resample": True}],
    )
    found = plan(scans, out=tmp_path / "out", jobs=jobs, series="3", select=("ECHO=2",))
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
    scans: Path, tmp_path: Path, first: dict[str, object], second: dict[str, object]
) -> None:
    rows = [{"input": "a.nii.gz", **first}, {"input": "b.npz", "format": "nii.gz", **second}]
    for order in (rows, rows[::-1]):
        jobs = write_json(tmp_path / "jobs.json", order)
        with raises(InputError, "results-alike"):
            plan(scans, out=tmp_path / "out", jobs=jobs)


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
    scans: Path, row: dict[str, object], other: dict[str, object], tmp_path: Path
) -> None:
    (scans / "reports").mkdir()
    write_json(scans / "reports" / "p.json", {"1": "Liver in abdominal CT"})
    rows = [{"input": "b.npz", **row}, {"input": "a.nii.gz", "output": "y.seg.nrrd", **other}]
    jobs = write_json(tmp_path / "jobs.json", rows)
    with raises(InputError, "input-overwritten"):
        plan(scans, out=scans, jobs=jobs)
    assert len(plan(scans, out=tmp_path / "out", jobs=jobs).cases) == 2


@pytest.fixture
def before(scans: Path) -> Path:
    """Results of another batch: of `a` labels, lesions and a class, as its record says."""
    folder = scans / "before"
    files = {"labels": "a.nrrd", "lesions": "a_lesions.nrrd", "class/liver.nrrd": "a/liver.nrrd"}
    (folder / ".medals-rt").mkdir(parents=True)
    (folder / "a").mkdir()
    for role, name in files.items():
        (folder / name).write_text(role, encoding="utf-8")
    hashes = {role: content_sha256(folder / name) for role, name in files.items()}
    write_json(folder / ".medals-rt" / "a.json", {"files": hashes, "ending": ".nrrd"})
    return folder


def test_results_of_other_batches_are_no_cases_whoever_names_them(
    scans: Path, tmp_path: Path, before: Path
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("scans/b.npz\nscans/before\n", encoding="utf-8")
    for inputs in ((scans / "b*",), (listed,), (scans / "b.npz", before), (tmp_path / "sc*",)):
        found = plan(*inputs, out=tmp_path / "out")
        assert "b" in results(found)
        assert not any("lesions" in name for name in results(found))
        assert found.earlier == (before,)
    with raises(InputError, "no-case", before):
        plan(scans / "bef*", out=tmp_path / "out")


def test_scans_beside_results_are_cases_without_the_results(before: Path, tmp_path: Path) -> None:
    (before / "a.npz").write_bytes(b"")
    for out in (tmp_path / "out", before):
        found = plan(before, out=out, ending=".nrrd")
        assert (results(found), found.earlier) == ({"a": "a.nrrd"}, ())
    for inputs in (
        (tmp_path / "scans" / "bef*",),
        (before / "*",),
        (before, before.parent / "deep"),
    ):
        assert "a" in results(plan(*inputs, out=before, ending=".nrrd"))
    (before / "a_lesions.nrrd").write_bytes(b"another scan")
    assert set(results(plan(before, out=tmp_path / "out"))) == {"a", "a_lesions"}
    assert results(plan(before / "a.nrrd", out=tmp_path / "out")) == {"a": "a.nrrd"}


def test_a_pattern_may_match_the_own_results(scans: Path, before: Path) -> None:
    (scans / "a.nii.gz").unlink()
    for pattern in ("*", "**/*.n*"):
        found = plan(scans / pattern, out=before)
        assert not {"a", "a_lesions", "liver"} & set(results(found))
        assert "b" in results(found)
        assert found.earlier == ()


@pytest.mark.usefixtures("scans")
def test_a_list_has_comments_and_never_names_itself(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("# of Monday\nscans/b.npz\n  # scans/none.npz\nsecond.txt\n", encoding="utf-8")
    second.write_text("scans/a.nii.gz\n", encoding="utf-8")
    assert list(results(plan(first, second, out=tmp_path / "out"))) == ["b", "a"]
    for line in ("first.txt", "*.txt", "second.txt"):
        second.write_text(f"{line}\n", encoding="utf-8")
        with raises(InputError, "list-in-itself"):
            plan(first, out=tmp_path / "out")


def test_a_scan_that_is_named_twice_is_one_case(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(scans)
    inputs = (scans / "b.npz", scans, tmp_path / "link" / "b.npz", scans / "*.npz", scans)
    found = plan(*inputs, out=tmp_path / "out")
    assert list(results(found)) == ["b", "a", "deep/er/c"]
    jobs = write_json(tmp_path / "jobs.json", [{"input": "b.npz"}, {"input": "b.npz", "seed": 3}])
    with raises(InputError, "results-alike"):
        plan(scans, out=tmp_path / "out", jobs=jobs)
