"""The API over HTTP: the same results, messages and files as the command line."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medals_rt.bundle.bundle import Bundle
from medals_rt.io.palette import class_color, hex_color
from medals_rt.io.registry import read_labels
from medals_rt.pipeline.job import run_job
from medals_rt.pipeline.output_grid import GridRequest
from medals_serve.client import ServiceClient
from tests.serve.serving import (
    SENTENCE,
    Running,
    cli_job,
    refused,
)

DIFFERS = ("seconds", "seconds_per_class", "peak_memory_mib", "memory", "stages", "limits", "case")
"""Of reports: times, and what the process held."""


def test_results_are_those_of_the_command_line(
    tiny_bundle: Bundle, client: ServiceClient, scan: Path, tmp_path: Path
) -> None:
    """Not a voxel differs, nor a byte of the file; reports differ in times alone."""
    asked = [SENTENCE, "Right kidney in abdominal CT"]
    files = {
        "report": tmp_path / "r.json",
        "statistics": tmp_path / "s.csv",
        "preview": tmp_path / "p.png",
    }
    output = tmp_path / "labels.nii.gz"
    result = run_job(cli_job(tiny_bundle, scan, output, *asked, **files))
    assert len(np.unique(result.labels_dhw)) == 3

    job = client.segment(client.upload(scan), asked)
    client.save_labels(job, tmp_path / "served.nii.gz")
    assert (tmp_path / "served.nii.gz").read_bytes() == output.read_bytes()
    assert client.fetch(job, "statistics", format="csv") == files["statistics"].read_bytes()
    assert client.fetch(job, "preview.png") == files["preview"].read_bytes()
    expected, report = json.loads(files["report"].read_text(encoding="utf-8")), client.report(job)
    assert report["case"] == expected["case"] == "scan of someone"
    assert {k: v for k, v in report.items() if k not in DIFFERS} == {
        k: v for k, v in expected.items() if k not in DIFFERS
    }
    assert report["seconds"].keys() == expected["seconds"].keys() - {"open models"}
    (liver, _) = job["classes"]
    assert liver["voxels"] == int((result.labels_dhw == 1).sum())
    assert liver["color"] == hex_color(class_color("Liver"))
    assert [note["code"] for note in job["notes"]] == [note["code"] for note in expected["notes"]]


def test_hybrid_mode_is_that_of_the_command_line(
    tiny_bundle: Bundle, client: ServiceClient, scan: Path, tmp_path: Path
) -> None:
    """A drawing made on the image that is shown, in another orientation than that file's."""
    uploaded = client.upload(scan)
    shown = client.http.get(f"/v1/images/{uploaded['image']}/volume.nii.gz").content
    displayed = nibabel.Nifti1Image.from_bytes(__import__("gzip").decompress(shown))
    original = nibabel.load(scan)
    np.testing.assert_array_equal(displayed.get_fdata(), original.get_fdata())
    np.testing.assert_allclose(displayed.affine, original.affine)
    drawn = np.zeros(displayed.shape, np.uint8)
    drawn[5:12, 4:14, 2:8] = 1
    drawing = tmp_path / "drawing.nii.gz"
    turned = nibabel.Nifti1Image(drawn, displayed.affine).as_reoriented(
        np.array([[0, -1], [2, 1], [1, 1]])
    )
    nibabel.save(turned, drawing)

    output = tmp_path / "labels.npz"
    run_job(cli_job(tiny_bundle, scan, output, SENTENCE, spatial_prompts=drawing))
    plain = client.segment(uploaded, SENTENCE)
    mask = client.upload_mask(uploaded, drawing)
    assert mask["labels"] == [1]
    job = client.segment(uploaded, SENTENCE, spatial_prompts=mask)
    client.save_labels(job, tmp_path / "served.npz")
    labels = read_labels(tmp_path / "served.npz").labels_dhw
    np.testing.assert_array_equal(labels, read_labels(output).labels_dhw)
    assert job["classes"][0]["voxels"] != plain["classes"][0]["voxels"]


def test_lesions_with_their_instances(client: ServiceClient, scan: Path) -> None:
    job = client.segment(client.upload(scan), "adrenocortical carcinoma on CT", kind="lesion")
    (found,) = job["classes"]
    assert found["lesions"] > 0
    assert len(client.statistics(job, "lesions")) == found["lesions"]
    content = __import__("gzip").decompress(client.fetch(job, "instances"))
    numbers = np.asarray(nibabel.Nifti1Image.from_bytes(content).dataobj)
    assert numbers.max() == found["lesions"]
    assert client.statistics(job)[0]["class"] == found["name"]


def test_probability_maps_and_another_grid_are_those_of_run(
    tiny_bundle: Bundle, client: ServiceClient, scan: Path, tmp_path: Path
) -> None:
    grid = GridRequest((2.0, 2.0, 2.0), 1.0)
    output, maps = tmp_path / "labels.nii.gz", tmp_path / "maps"
    run_job(replace(cli_job(tiny_bundle, scan, output, SENTENCE), probabilities=maps))
    run_job(replace(cli_job(tiny_bundle, scan, output, SENTENCE), grid=grid))
    uploaded = client.upload(scan)
    job = client.segment(uploaded, SENTENCE, probabilities=True)
    with zipfile.ZipFile(io.BytesIO(client.fetch(job, "probabilities"))) as archive:
        assert archive.namelist() == [path.name for path in maps.iterdir()]
        assert archive.read("liver.nii.gz") == (maps / "liver.nii.gz").read_bytes()
    served = client.fetch(job, crop="1", spacing="2")
    assert served == output.read_bytes()
    assert client.fetch(job, crop="1", spacing="2,2,2") == served
    assert refused(client.fetch, job, format="dcm", crop="1").code == "grid-of-the-source"
    for what, query in (("result", {"crops": "10"}), ("probabilities", {"crop": "10"})):
        error = refused(client.fetch, job, what, **query)
        assert (error.status, error.code) == (422, "parameter-unknown")
    assert refused(client.fetch, job, spacing="5000").code == "output-spacing-too-large"
    less = client.fetch(job, format="glb", mesh_reduction="0.02")
    assert len(less) < len(client.fetch(job, format="glb"))
    assert refused(client.fetch, job, mesh_reduction="0.5").code == "no-mesh-to-reduce"
    assert client.fetch(job, "coarse/1")[3:8] == bytes(5)  # neither a name nor a time
    assert refused(client.fetch, job, "coarse/0").code == "coarse-not-there"
    plain = client.segment(uploaded, SENTENCE)
    assert refused(client.fetch, plain, "probabilities").code == "no-probabilities"
    assert refused(client.segment, uploaded, SENTENCE, probabilities=1).code == "option-invalid"


@pytest.mark.parametrize("name", ["npz", "nii.gz", "seg.nrrd", "mha", "nifti"])
def test_formats_hold_the_same_labels(
    client: ServiceClient, scan: Path, tmp_path: Path, name: str
) -> None:
    job = client.segment(client.upload(scan), SENTENCE)
    path = tmp_path / f"x.{'nii' if name == 'nifti' else name}"
    content = client.fetch(job, format=name)
    path = tmp_path / f"x.{'nii.gz' if name == 'nifti' else name}"
    path.write_bytes(content)
    labels = read_labels(path).labels_dhw
    assert int((labels == 1).sum()) == job["classes"][0]["voxels"]


@pytest.mark.parametrize("name", ["case.01.nii.gz", "CASE.NII.GZ", "case.1.seg.nrrd"])
def test_labels_are_saved_in_the_format_of_their_name(
    client: ServiceClient, scan: Path, tmp_path: Path, name: str
) -> None:
    job = client.segment(client.upload(scan), SENTENCE)
    client.save_labels(job, tmp_path / name)
    labels = read_labels(tmp_path / name).labels_dhw
    assert int((labels == 1).sum()) == job["classes"][0]["voxels"]
    assert refused(client.save_labels, job, tmp_path / "case.xyz").code == "unknown-format"


@pytest.mark.parametrize(
    ("prompts", "options", "code"),
    [
        (["Liver in CT", "Liver in CT"], {}, "class-repeated"),
        (["the moon in CT"], {}, None),
        ([], {}, "no-prompts"),
        (None, {}, "no-prompts"),
        ({"1": "Liver in CT", "x": "Spleen in CT"}, {}, None),
        ("Liver", {}, "no-modality"),
        (SENTENCE, {"seed": "x"}, "option-invalid"),
        (SENTENCE, {"preset": "nothing"}, "preset-unknown"),
        (SENTENCE, {"lesions": 3}, "option-invalid"),
        (SENTENCE, {"max_memory": 3}, "option-unknown"),
        (SENTENCE, {"masks": 3}, "option-unknown"),
        (SENTENCE, {"time_budget": -1.0}, "time-budget-out-of-range"),
        (SENTENCE, {"window": "nothing"}, None),
    ],
)
def test_what_can_not_be_asked_for(
    client: ServiceClient, scan: Path, served: Running, prompts: Any, options: Any, code: str | None
) -> None:
    """It is refused before it waits, and leaves nothing."""
    uploaded = client.upload(scan)
    before = served.files()
    error = refused(client.submit, uploaded, prompts, **options)
    assert error.status == 422
    assert error.code == (code or error.code)
    assert error.problem["type"].endswith(error.code)
    assert "\n" not in str(error)
    assert served.files() == before


def test_a_modality_is_asked_for_by_any_of_its_names(client: ServiceClient, scan: Path) -> None:
    assert client.prompts("Liver", modality="ct") == client.prompts("Liver", modality="CT")
    uploaded = client.upload(scan)
    assert client.submit(uploaded, "Liver", modality="ct")["status"]
    error = refused(client.submit, uploaded, "Liver", modality="XR")
    assert (error.status, error.code) == (422, "request-invalid")
    assert str(error).startswith("modality: no modality 'XR'; choose from CT")
    assert refused(client.submit, uploaded, "Liver", modality=3).code == "request-invalid"


def test_options_of_a_job_are_those_of_a_run(
    tiny_bundle: Bundle, client: ServiceClient, scan: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels.npz"
    job = cli_job(tiny_bundle, scan, output, SENTENCE)
    segment = replace(job.options.segment, refinement="none", postprocess="off", window="400,40")
    run_job(replace(job, options=replace(job.options, segment=segment)))
    served = client.segment(
        client.upload(scan), SENTENCE, refinement="none", postprocess="off", window="400,40"
    )
    client.save_labels(served, tmp_path / "served.npz")
    np.testing.assert_array_equal(
        read_labels(tmp_path / "served.npz").labels_dhw, read_labels(output).labels_dhw
    )
    assert client.report(served)["refinement"] == "none"
