"""Which cases a batch finds."""

from pathlib import Path

import pytest

from medals_rt.common.errors import InputError, MissingFileError
from medals_rt.pipeline.batch.remote_files import content_sha256
from tests.errors import raises
from tests.folders import close_folder
from tests.pipeline.batch.helpers import plan, results, write_json


def test_a_folder_with_all_below_it(empty_scans: Path, tmp_path: Path) -> None:
    found = plan(empty_scans, out=tmp_path / "out")
    assert results(found) == {"a": "a.nii.gz", "b": "b.npz", "deep/er/c": "deep/er/c.nrrd"}
    (deep,) = (case for case in found.cases if case.name == "deep/er/c")
    assert deep.job.report == tmp_path / "out" / "reports" / "deep" / "er" / "c.json"
    assert deep.job.preview == tmp_path / "out" / "previews" / "deep" / "er" / "c.png"
    assert deep.record == tmp_path / "out" / ".medals-rt" / "deep" / "er" / "c.json"


def test_folders_of_dicom_files_are_cases(empty_scans: Path, tmp_path: Path) -> None:
    series = empty_scans / "patient" / "series"
    (series / "more").mkdir(parents=True)
    for name in ("slice1", "slice2", "more/slice3"):
        (series / name).write_bytes(bytes(128) + b"DICM")
    (empty_scans / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (empty_scans / "packed.zip").write_bytes(b"PK")
    found = plan(empty_scans, out=tmp_path / "out")
    assert results(found) == {
        "a": "a.nii.gz",
        "b": "b.npz",
        "packed": "packed.dcm",
        "deep/er/c": "deep/er/c.nrrd",
        "patient/series": "patient/series.dcm",
    }
    assert results(plan(series, out=tmp_path / "out")) == {"series": "series.dcm"}


def test_results_inside_the_inputs_are_no_cases(empty_scans: Path) -> None:
    out = empty_scans / "out"
    out.mkdir()
    (out / "a.npz").write_bytes(b"")
    assert set(results(plan(empty_scans, out=out))) == {"a", "b", "deep/er/c"}


def test_results_of_other_batches_are_no_cases(empty_scans: Path, tmp_path: Path) -> None:
    (empty_scans / "before" / ".medals-rt").mkdir(parents=True)
    (empty_scans / "before" / "a.npz").write_bytes(b"")
    found = plan(empty_scans, out=tmp_path / "out")
    assert set(results(found)) == {"a", "b", "deep/er/c"}
    assert found.passed_over == (
        f"results of other batches are passed over: {empty_scans / 'before'}",
    )
    assert set(results(plan(empty_scans / "before", out=tmp_path / "out"))) == {"a"}


def test_links_are_followed_once(empty_scans: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.npz").write_bytes(b"")
    (empty_scans / "linked").symlink_to(tmp_path / "elsewhere")
    (empty_scans / "self").symlink_to(empty_scans)
    (empty_scans / "up").symlink_to(tmp_path)
    (empty_scans / "a_link").symlink_to(empty_scans / "deep")  # sorts first, takes no name
    found = plan(empty_scans, out=tmp_path / "out")
    assert set(results(found)) == {"a", "b", "deep/er/c", "linked/d"}
    (told,) = found.passed_over
    assert told == (
        "links to folders that are gone through under another name are passed over: "
        f"{empty_scans / 'a_link'}"
    )


def test_folders_that_cant_be_read_are_named(
    empty_scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_folder("deep", monkeypatch)
    found = plan(empty_scans, out=tmp_path / "out")
    assert set(results(found)) == {"a", "b"}
    closed = f"{empty_scans / 'deep'} (Permission denied)"
    assert found.passed_over == (f"folders that can't be read are passed over: {closed}",)


def test_files_patterns_and_lists(empty_scans: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("scans/b.npz\n\nscans/deep\n", encoding="utf-8")
    for inputs, names in {
        (empty_scans / "b.npz", empty_scans / "a.nii.gz"): ["b", "a"],
        (empty_scans / "*.npz",): ["b"],
        (empty_scans / "**" / "*.*z",): ["a", "b"],
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
    empty_scans: Path, tmp_path: Path, name: str, error: tuple[str, ...]
) -> None:
    (empty_scans / "empty").mkdir()
    with raises(InputError, *error):
        plan(empty_scans / name, out=tmp_path / "out")


def test_jobs_start_from_one_folder(empty_scans: Path, tmp_path: Path) -> None:
    jobs = write_json(tmp_path / "jobs.json", [{"input": "b.npz"}])
    for inputs in ((empty_scans, empty_scans), (empty_scans / "b.npz",)):
        with raises(InputError, "jobs-folder-missing"):
            plan(*inputs, out=tmp_path / "out", jobs=jobs)
    with raises(MissingFileError, "jobs-file-missing"):
        plan(empty_scans, out=tmp_path / "out", jobs=tmp_path / "none.json")


def test_sentences_of_a_row_are_read_before_any_case_is_run(
    empty_scans: Path, tmp_path: Path
) -> None:
    rows = [{"input": "b.npz"}, {"input": "a.nii.gz", "sentences": ["Livre on CT"]}]
    jobs = write_json(tmp_path / "jobs.json", rows)
    with raises(InputError, "no-class", "jobs.json, job 2", "Livre"):
        plan(empty_scans, out=tmp_path / "out", jobs=jobs)


def test_images_that_are_not_read_are_named(empty_scans: Path, tmp_path: Path) -> None:
    for name in ("brain.mnc", "deep/er/slide.TIFF", "notes.md", ".hidden.png"):
        (empty_scans / name).parent.mkdir(parents=True, exist_ok=True)
        (empty_scans / name).write_bytes(b"")
    found = plan(empty_scans, out=tmp_path / "out")
    assert found.passed_over == (
        "images of formats not read are passed over: brain.mnc, slide.TIFF",
    )
    only = tmp_path / "only"
    only.mkdir()
    (only / "brain.mnc").write_bytes(b"")
    with raises(InputError, "no-case", "brain.mnc"):
        plan(only, out=tmp_path / "out")


@pytest.fixture
def before(empty_scans: Path) -> Path:
    """Results of another batch: of `a` labels, lesions and a class, as its record says."""
    folder = empty_scans / "before"
    files = {"labels": "a.nrrd", "lesions": "a_lesions.nrrd", "class/liver.nrrd": "a/liver.nrrd"}
    (folder / ".medals-rt").mkdir(parents=True)
    (folder / "a").mkdir()
    for role, name in files.items():
        (folder / name).write_text(role, encoding="utf-8")
    hashes = {role: content_sha256(folder / name) for role, name in files.items()}
    write_json(folder / ".medals-rt" / "a.json", {"files": hashes, "ending": ".nrrd"})
    return folder


def test_results_of_other_batches_are_no_cases_whoever_names_them(
    empty_scans: Path, tmp_path: Path, before: Path
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("scans/b.npz\nscans/before\n", encoding="utf-8")
    for inputs in (
        (empty_scans / "b*",),
        (listed,),
        (empty_scans / "b.npz", before),
        (tmp_path / "sc*",),
    ):
        found = plan(*inputs, out=tmp_path / "out")
        assert "b" in results(found)
        assert not any("lesions" in name for name in results(found))
        assert found.passed_over == (f"results of other batches are passed over: {before}",)
    with raises(InputError, "no-case", before):
        plan(empty_scans / "bef*", out=tmp_path / "out")


def test_scans_beside_results_are_cases_without_the_results(before: Path, tmp_path: Path) -> None:
    (before / "a.npz").write_bytes(b"")
    for out in (tmp_path / "out", before):
        found = plan(before, out=out, format="nrrd")
        assert (results(found), found.passed_over) == ({"a": "a.nrrd"}, ())
    for inputs in (
        (tmp_path / "scans" / "bef*",),
        (before / "*",),
        (before, before.parent / "deep"),
    ):
        assert "a" in results(plan(*inputs, out=before, format="nrrd"))
    (before / "a_lesions.nrrd").write_bytes(b"another scan")
    assert set(results(plan(before, out=tmp_path / "out"))) == {"a", "a_lesions"}
    assert results(plan(before / "a.nrrd", out=tmp_path / "out")) == {"a": "a.nrrd"}


def test_a_pattern_may_match_the_own_results(empty_scans: Path, before: Path) -> None:
    (empty_scans / "a.nii.gz").unlink()
    for pattern in ("*", "**/*.n*"):
        found = plan(empty_scans / pattern, out=before)
        assert not {"a", "a_lesions", "liver"} & set(results(found))
        assert "b" in results(found)
        assert found.passed_over == ()


@pytest.mark.usefixtures("empty_scans")
def test_a_list_has_comments_and_never_names_itself(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("# of Monday\nscans/b.npz\n  # scans/none.npz\nsecond.txt\n", encoding="utf-8")
    second.write_text("scans/a.nii.gz\n", encoding="utf-8")
    assert list(results(plan(first, second, out=tmp_path / "out"))) == ["b", "a"]
    for line in ("first.txt", "*.txt", "second.txt"):
        second.write_text(f"{line}\n", encoding="utf-8")
        with raises(InputError, "list-in-itself"):
            plan(first, out=tmp_path / "out")


def test_a_scan_that_is_named_twice_is_one_case(empty_scans: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(empty_scans)
    inputs = (
        empty_scans / "b.npz",
        empty_scans,
        tmp_path / "link" / "b.npz",
        empty_scans / "*.npz",
        empty_scans,
    )
    found = plan(*inputs, out=tmp_path / "out")
    assert list(results(found)) == ["b", "a", "deep/er/c"]
    jobs = write_json(tmp_path / "jobs.json", [{"input": "b.npz"}, {"input": "b.npz", "seed": 3}])
    with raises(InputError, "results-alike"):
        plan(empty_scans, out=tmp_path / "out", jobs=jobs)
