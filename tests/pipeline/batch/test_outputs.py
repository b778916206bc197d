"""What a batch can write beside labels: all that `medals-rt run` can, for every case."""

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import InputError
from medals_rt.io.registry import read_labels
from medals_rt.pipeline.batch.records import fingerprint
from medals_rt.pipeline.batch.shared_cells import identity_of
from medals_rt.pipeline.csv_tables import LESION_COLUMNS
from tests.dicom import write_series
from tests.errors import raises
from tests.pipeline.batch.helpers import SHAPE, batch, files_below, plan, statuses, write_case

LESIONS = ("--prompt", "adrenocortical carcinoma on CT", "--kind", "lesion")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_table_of_all_lesions(tiny_bundle: Bundle, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    for name, seed in (("=1+1", 0), ("b", 1)):
        write_case(scans / f"{name}.npz", seed, prompts=None)
    words = (scans, out, *LESIONS, "--statistics", "--instances", "--no-preview", "--quiet")
    result = batch(tiny_bundle.folder, *words)
    assert result.exit_code == 0, result.output
    table = rows(out / "lesions.csv")
    assert list(table[0]) == ["case", *LESION_COLUMNS]
    assert {row["case"] for row in table} == {"'=1+1", "b"}  # no spreadsheet runs a name
    for name, shown in (("=1+1", "'=1+1"), ("b", "b")):
        numbers = read_labels(out / f"{name}_lesions.npz").labels_dhw
        of_case = [row for row in table if row["case"] == shown]
        assert [int(row["instance"]) for row in of_case] == np.unique(numbers)[1:].tolist()
        for row in of_case:
            assert int(row["voxels"]) == (numbers == int(row["instance"])).sum()
    again = batch(tiny_bundle.folder, *words)
    assert again.exit_code == 0, again.output
    assert set(statuses(out).values()) == {"kept"}
    assert rows(out / "lesions.csv") == table
    (out / "b_lesions.npz").unlink()
    assert batch(tiny_bundle.folder, *words).exit_code == 0
    assert (out / "b_lesions.npz").is_file()


def test_probability_maps_and_another_grid(tiny_bundle: Bundle, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_case(scans / "p" / "a.npz")
    more = ("--format", "nii.gz", "--probabilities", "--crop", "0", "--output-spacing", "1")
    result = batch(tiny_bundle.folder, scans, out, "--no-preview", "--quiet", *more)
    assert result.exit_code == 0, result.output
    labels = nibabel.load(out / "p" / "a.nii.gz")
    map_of = nibabel.load(out / "p" / "a_probabilities" / "liver.nii.gz")
    assert labels.header.get_zooms() == (1.0, 1.0, 1.0)
    np.testing.assert_allclose(map_of.affine, labels.affine)
    assert map_of.shape == labels.shape
    record = json.loads((out / ".medals-rt" / "p" / "a.json").read_text(encoding="utf-8"))
    assert set(record["files"]) == {"labels", "report", "map/liver.nii.gz"}
    words = ("--no-preview", "--quiet", *more[:-1], "2")
    assert batch(tiny_bundle.folder, scans, out, *words).exit_code == 0
    assert nibabel.load(out / "p" / "a.nii.gz").header.get_zooms() == (2.0, 2.0, 2.0)


def test_rows_of_a_jobs_file_have_outputs_of_their_own(tiny_bundle: Bundle, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_case(scans / "a.npz")
    jobs = tmp_path / "jobs.csv"
    jobs.write_text(
        "input,output,format,output_spacing,split,probabilities\n"
        "a.npz,fine,nii.gz,1,true,\na.npz,plain,,,,\na.npz,maps,nii.gz,,,true\n",
        encoding="utf-8",
    )
    words = (scans, out, "--jobs", jobs, "--no-preview", "--quiet")
    result = batch(tiny_bundle.folder, *words)
    assert result.exit_code == 0, result.output
    written = [name for name in files_below(out) if not name.startswith(("reports", "summary"))]
    assert written == [
        "fine.nii.gz", "fine/liver.nii.gz", "maps.nii.gz", "maps_probabilities/liver.nii.gz",
        "plain.npz",
    ]  # fmt: skip
    zooms = {
        name: nibabel.load(out / f"{name}.nii.gz").header.get_zooms() for name in ("fine", "maps")
    }
    assert zooms == {"fine": (1.0, 1.0, 1.0), "maps": (2.0, 2.0, 3.0)}
    jobs.write_text(
        jobs.read_text(encoding="utf-8").replace("fine,nii.gz,1", "fine,nii.gz,2"), encoding="utf-8"
    )
    again = batch(tiny_bundle.folder, *words)
    assert again.exit_code == 0, again.output
    assert statuses(out) == {"fine": "done", "plain": "kept", "maps": "kept"}


def test_reports_of_measurements_refer_to_their_seg(tiny_bundle: Bundle, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(-200, 300, SHAPE).astype(np.int16)
    write_series(tmp_path / "scans" / "a", image, np.diag([2.0, 2.0, 3.0, 1.0]))
    out = tmp_path / "out"
    words = ("--prompt", "Liver in CT", "--sr", "--no-preview", "--quiet")
    result = batch(tiny_bundle.folder, tmp_path / "scans", out, *words)
    assert result.exit_code == 0, result.output
    seg, report = (pydicom.dcmread(out / name) for name in ("a.dcm", "a.sr.dcm"))
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    named = {
        each.ReferencedSOPInstanceUID for one in evidence for each in one.ReferencedSOPSequence
    }
    assert seg.SOPInstanceUID in named
    write_case(tmp_path / "others" / "b.npz")
    refused = batch(tiny_bundle.folder, tmp_path / "others", tmp_path / "o", *words)
    assert refused.exit_code == 2
    assert "--format dcm" in refused.stderr


def test_failed_cases_leave_no_empty_folders(tiny_bundle: Bundle, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_case(scans / "good" / "a.npz")
    (scans / "bad" / "deep").mkdir(parents=True)
    (scans / "bad" / "deep" / "b.npz").write_bytes(b"no npz")
    words = ("--split", "--format", "nii.gz", "--quiet", "--reports", tmp_path / "reports")
    result = batch(tiny_bundle.folder, scans, out, *words)
    assert result.exit_code == 1
    assert not any("bad" in path.parts for path in out.rglob("*"))
    assert not (tmp_path / "reports" / "previews" / "bad").exists()
    assert not (tmp_path / "reports" / "reports" / "bad").exists()
    assert files_below(out) == ["good/a.nii.gz", "good/a/liver.nii.gz"]
    empty = batch(tiny_bundle.folder, scans / "bad", tmp_path / "none", "--quiet")
    assert empty.exit_code == 1
    assert sorted(path.name for path in (tmp_path / "none").iterdir() if path.is_dir()) == [
        ".medals-rt"
    ]


def test_choices_of_a_series_without_dicom_are_warned_of(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    write_case(tmp_path / "scans" / "a.npz")
    words = ("--no-preview", "--quiet", "--select", "ECHO=2")
    result = batch(tiny_bundle.folder, tmp_path / "scans", tmp_path / "out", *words)
    assert result.exit_code == 0, result.output
    assert "--series and --select change nothing" in result.stderr


def test_fewer_faces_are_another_result(tmp_path: Path) -> None:
    write_case(tmp_path / "scans" / "a.npz")
    made_from = set()
    for share in (0.0, 0.5):
        found = plan(tmp_path / "scans", out=tmp_path / "out", format="glb", mesh_reduction=share)
        made_from.add((fingerprint(found.cases[0], "bundle"), identity_of(found, {}, "bundle")))
    assert len({one for one, _ in made_from}) == len({other for _, other in made_from}) == 2


@pytest.mark.parametrize("name", ["a_lesions.npz", "A_Lesions.npz"])
def test_a_case_called_as_the_lesions_of_another_is_refused(tmp_path: Path, name: str) -> None:
    for each in ("a.npz", name):
        write_case(tmp_path / "scans" / each)
    with raises(InputError, "results-alike"):
        plan(tmp_path / "scans", out=tmp_path / "out", instances=True)
