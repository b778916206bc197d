"""What `run` writes beside the labels, how commands share options, and outputs with no room."""

import errno
import inspect
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import nibabel
import numpy as np
import pytest
import SimpleITK
import typer
from pydicom import dcmread
from typer.testing import CliRunner

from medals_rt.bundle.bundle import Bundle
from medals_rt.cli import app
from medals_rt.cli._options import run_options, takes
from medals_rt.cli.batch import batch_command
from medals_rt.cli.run import run_command
from medals_rt.common.choices import OutputFormat
from medals_rt.common.cores import usable_cores
from medals_rt.common.errors import CaseError, InputError
from medals_rt.io.registry import FORMATS, read_case, read_labels, write_segmentation
from medals_rt.io.volume import SourceGrid
from medals_rt.pipeline import job_writing
from medals_rt.pipeline.csv_tables import LESION_COLUMNS
from medals_rt.pipeline.job_inputs import read_annotation, read_job
from medals_rt.pipeline.job_outputs import check_outputs, default_output
from medals_rt.pipeline.job_request import Job
from medals_rt.pipeline.job_writing import draw_preview
from medals_rt.pipeline.options import PromptSource, RunOptions, SegmentOptions
from medals_rt.pipeline.segmenter import load
from medals_rt.prompts.prompt_set import numbered, parse_prompts
from tests.cli.helpers import error_of
from tests.dicom import write_series
from tests.errors import raises
from tests.pipeline.batch.helpers import SHAPE, write_case


def words(bundle: Bundle, case: Path, output: Path, *more: object) -> list[str]:
    fixed = ["run", "--input", case, "--output", output, "--bundle", bundle.folder]
    return [*map(str, fixed), "--runner", "onnxruntime", "--precision", "fp32", *map(str, more)]


@pytest.mark.parametrize(
    "more",
    [
        {"output": "p.hdr"},
        {"statistics": "p.hdr"},
        {"report": "p.hdr"},
        {"spatial_prompts": "drawn.hdr", "preview": "drawn.img"},
    ],
)
def test_no_file_of_a_pair_is_overwritten(tmp_path: Path, more: dict[str, str]) -> None:
    places = {"input": "p.img", "output": "o.nii.gz"} | more
    for name in {places["input"], places.get("spatial_prompts", places["input"])}:
        SimpleITK.WriteImage(SimpleITK.Image(4, 4, 4, SimpleITK.sitkUInt8), str(tmp_path / name))
    with raises(InputError, "input-overwritten"):
        check_outputs(Job(**{role: tmp_path / name for role, name in places.items()}))


def test_data_files_of_results_are_files_of_their_own(tmp_path: Path) -> None:
    case = write_case(tmp_path / "a.npz")
    with raises(InputError, "outputs-alike"):
        check_outputs(Job(case, tmp_path / "o.hdr", instances=tmp_path / "o.img"))
    job = Job(case, tmp_path / "o.mhd", source=PromptSource(sentences=("Liver in abdominal CT",)))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "liver.zraw").touch()
    job = replace(job, split=tmp_path / "s")
    assert "split-folder-not-empty" not in {note.code for note in read_job(job).case.notes}


def test_paths_begin_at_home(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shells leave ~ in --output=~/x as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_case(tmp_path / "a.npz")
    asked = words(tiny_bundle, Path("~/a.npz"), Path("~/s.npz"), "--report=~/r.json")
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert {"s.npz", "r.json"} <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "~").exists()
    assert Job("~/a.npz", "~/s.npz").output == tmp_path / "s.npz"  # type: ignore[arg-type]


def test_no_slice_of_a_folder_is_overwritten(tmp_path: Path) -> None:
    array = np.arange(64, dtype=np.int16).reshape(4, 4, 4)
    write_series(tmp_path / "scan", array, np.eye(4))
    write_series(tmp_path / "scan" / "other", array, np.eye(4), seed=1)
    for name in ("scan/IM0001", "scan/other/IM0002", "link/IM0001"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("scan")
        job = Job(tmp_path / "scan", tmp_path / "o.nii.gz", report=tmp_path / name)
        with raises(InputError, "input-overwritten"):
            check_outputs(job)
    (tmp_path / "scan" / "report.json").touch()  # of an earlier run
    check_outputs(replace(job, report=tmp_path / "scan" / "report.json"))
    case = read_case(tmp_path / "scan", series="1.2.3.4.1")
    (tmp_path / "scan" / "IM0001").rename(tmp_path / "scan" / "a.nii.gz")
    with raises(CaseError, "input-overwritten"):
        write_segmentation(tmp_path / "scan" / "a.nii.gz", case, array)


def test_run_writes_statistics(tiny_bundle: Bundle, tmp_path: Path) -> None:
    case, output, table = write_case(tmp_path / "a.npz"), tmp_path / "s.npz", tmp_path / "s.csv"
    result = CliRunner().invoke(app, words(tiny_bundle, case, output, "--statistics", table))
    assert result.exit_code == 0, result.output
    assert f"wrote {table}" in result.stdout
    headings, row = (line.split(",") for line in table.read_text(encoding="utf-8").splitlines())
    found = dict(zip(headings, row, strict=True))
    with np.load(output) as stored, np.load(case) as given:
        inside = given["imgs"][stored["segs"] == 1]
    assert (found["class"], int(found["voxels"])) == ("Liver", inside.size)
    assert float(found["mean"]) == pytest.approx(inside.mean(), rel=1e-5)
    same = CliRunner().invoke(app, words(tiny_bundle, case, output, "--statistics", output))
    assert same.exit_code == 2
    error = error_of(same)
    assert isinstance(error, InputError)
    assert error.code == "outputs-alike"


def test_only_surfaces_have_faces_to_leave_out(tiny_bundle: Bundle, tmp_path: Path) -> None:
    case, output = write_case(tmp_path / "a.npz"), tmp_path / "s.npz"
    result = CliRunner().invoke(app, words(tiny_bundle, case, output, "--mesh-reduction", "0.9"))
    assert result.exit_code == 2
    assert error_of(result).code == "no-mesh-to-reduce"
    assert not output.exists()


LESIONS = ("--prompt", "adrenocortical carcinoma on CT", "--kind", "lesion")


def test_lesions_have_a_table_and_a_map_of_their_own(tiny_bundle: Bundle, tmp_path: Path) -> None:
    case, output, table = write_case(tmp_path / "a.npz"), tmp_path / "s.npz", tmp_path / "s.csv"
    numbered = tmp_path / "n.nrrd"
    more = (*LESIONS, "--statistics", table, "--instances", numbered)
    result = CliRunner().invoke(app, words(tiny_bundle, case, output, *more))
    assert result.exit_code == 0, result.output
    for path in (tmp_path / "s_lesions.csv", numbered):
        assert f"wrote {path}" in result.stdout
    lines = (tmp_path / "s_lesions.csv").read_text(encoding="utf-8").splitlines()
    headings, *rows = (line.split(",") for line in lines)
    assert headings == list(LESION_COLUMNS)
    with np.load(output) as stored:
        instances = stored["instances"]
    assert len(rows) == len(np.unique(instances)) - 1 > 0
    for row in rows:
        found = dict(zip(headings, row, strict=True))
        assert int(found["voxels"]) == (instances == int(found["instance"])).sum()
    labels = read_labels(numbered)
    assert np.array_equal(labels.labels_dhw, instances)
    text = numbered.read_bytes()
    assert f"Segment0_Name:={rows[0][1]} {rows[0][2]}".encode() in text


def test_probability_maps_by_run_and_python_are_alike(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Both are bytes that read as 0 to 1, and what was labeled is half and more."""
    case, output, maps = write_case(tmp_path / "a.npz"), tmp_path / "s.npz", tmp_path / "maps"
    more = ("--probabilities", maps, "--postprocess", "off")
    result = CliRunner().invoke(app, words(tiny_bundle, case, output, *more))
    assert result.exit_code == 0, result.output
    assert f"wrote {maps}" in result.stdout
    image = nibabel.load(maps / "liver.nii.gz")
    assert image.get_data_dtype() == np.uint8
    by_itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(maps / "liver.nii.gz")))
    read = read_case(case)
    options = SegmentOptions(postprocess="off", probabilities=True)
    with load(tiny_bundle.folder, runner="onnxruntime", precision="fp32") as segmenter:
        found = segmenter.segment(read.volume, read.prompts or {}, options)
        plain = segmenter.segment(read.volume, read.prompts or {})
    assert plain.probabilities is None
    assert found.probabilities is not None
    assert list(found.probabilities) == [1]
    np.testing.assert_allclose(image.get_fdata().T, found.probabilities[1] / 255, atol=1e-6)
    np.testing.assert_allclose(by_itk, found.probabilities[1] / 255, atol=1e-6)
    np.testing.assert_array_equal(found.labels_dhw, read_labels(output).labels_dhw)
    assert 0 < (found.labels_dhw > 0).sum() < found.labels_dhw.size
    disagree = (found.labels_dhw > 0) != (found.probabilities[1] >= 128)
    assert disagree.mean() < 0.03  # both came from the stage's grid, each by its own rule


@pytest.mark.usefixtures("all_cores")
def test_threads_are_bounded_by_the_cores_and_change_no_label(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    case, labels, found = write_case(tmp_path / "a.npz"), [], []
    for threads in ("1", "100000"):
        output, report = tmp_path / f"{threads}.npz", tmp_path / f"{threads}.json"
        more = ("--threads", threads, "--report", report)
        result = CliRunner().invoke(app, words(tiny_bundle, case, output, *more))
        assert result.exit_code == 0, result.output
        assert ("100,000 threads" in result.stderr) == (threads == "100000")
        labels.append(read_labels(output).labels_dhw)
        found.append(json.loads(report.read_text(encoding="utf-8"))["threads"])
    assert found == [1, usable_cores()]
    np.testing.assert_array_equal(*labels)


def test_a_picture_says_that_one_stage_made_it(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[list[str]] = []
    monkeypatch.setattr(
        job_writing, "save_preview", lambda *_, notices, **__: shown.append(notices)
    )
    case, picture = write_case(tmp_path / "a.npz"), tmp_path / "a.png"
    for stages in ("coarse", "both"):
        asked = words(tiny_bundle, case, tmp_path / "s.npz", "--preview", picture)
        assert CliRunner().invoke(app, [*asked, "--stages", stages]).exit_code == 0
    coarse, both = shown
    assert coarse[0] == "the result is that of the coarse stage alone"
    assert not any("stage alone" in text for text in both)


@pytest.mark.parametrize("more", [("--prompt", "Liver in CT"), (*LESIONS, "--preset", "release")])
def test_a_map_of_lesions_that_will_not_be_there_is_refused(
    tiny_bundle: Bundle, tmp_path: Path, more: tuple[str, ...]
) -> None:
    case, output = write_case(tmp_path / "a.npz"), tmp_path / "s.npz"
    asked = words(tiny_bundle, case, output, *more, "--instances", tmp_path / "n.nii.gz")
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 2
    assert "no numbered lesions" in result.stderr
    assert not output.exists()


def test_the_format_may_be_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_series(
        tmp_path / "ct",
        np.arange(3456, dtype=np.int16).reshape(6, 24, 24),
        np.diag([2.0, 2.0, 3.0, 1.0]),
    )
    prompt = ("--prompt", "Liver in CT")
    for name, named in (("a.dcm", ["--format", "rtstruct"]), ("a.rtstruct.dcm", [])):
        asked = words(tiny_bundle, tmp_path / "ct", tmp_path / name, *prompt, *named)
        result = CliRunner().invoke(app, asked)
        assert result.exit_code == 0, result.output
        assert dcmread(tmp_path / name).Modality == "RTSTRUCT"
    wrong = words(
        tiny_bundle, tmp_path / "ct", tmp_path / "a.nrrd", *prompt, "--format", "rtstruct"
    )
    result = CliRunner().invoke(app, wrong)
    assert result.exit_code == 2
    assert "can't be of the format rtstruct" in result.stderr


def test_every_format_that_is_written_can_be_named() -> None:
    assert get_args(OutputFormat) == tuple(each.name for each in FORMATS if each.write is not None)


@pytest.mark.parametrize("step", ["os.fsync", "numpy.savez_compressed"])
def test_run_on_a_full_disk(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    case, out = write_case(tmp_path / "a.npz"), tmp_path / "out"

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(step, full)
    result = CliRunner().invoke(app, words(tiny_bundle, case, out / "s.npz"))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: can't write {out / 's.npz'}: No space left on device;")
    assert result.stderr.count("\n") == 1
    assert not list(out.iterdir())


def test_a_home_that_cannot_be_written_is_no_hindrance(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDALS_RT_CACHE", "/proc/no/cache")
    case, output = write_case(tmp_path / "a.npz"), tmp_path / "s.npz"
    result = CliRunner().invoke(app, words(tiny_bundle, case, output, "--quiet"))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    with np.load(output) as stored:
        assert stored["segs"].shape == SHAPE


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("a.npz", "a_seg.npz"),
        ("x/b.nii.gz", "b_seg.nii.gz"),
        ("c.v2.NRRD", "c.v2_seg.nrrd"),
        ("d", "d_seg.npz"),
        ("e.zip", "e_seg.dcm"),
    ],
)
def test_the_name_of_a_result(tmp_path: Path, name: str, result: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / name).write_bytes(b"")
    assert default_output(tmp_path / name) == Path(result)
    assert default_output(tmp_path / "x") == Path("x_seg.dcm")


def test_a_result_without_a_name_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two patients' scans may have one name; links have their own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1234" / "series").mkdir(parents=True)
    (tmp_path / "anna").symlink_to(tmp_path / "1234" / "series")
    assert default_output(tmp_path / "anna") == Path("anna_seg.dcm")
    assert default_output(tmp_path / "1234" / "series" / "..") == Path("1234_seg.dcm")
    Path("anna_seg.dcm").touch()
    with raises(InputError, "output-exists"):
        default_output(tmp_path / "anna")


def test_paths_and_prompts_as_people_write_them() -> None:
    job = Job(input="a.npz", output="b.npz", split="c")  # type: ignore[arg-type]
    assert (job.input, job.output, job.split) == (Path("a.npz"), Path("b.npz"), Path("c"))
    with pytest.raises(TypeError, match="a list or tuple is wanted"):
        PromptSource(sentences="Liver in CT")  # type: ignore[arg-type]
    for given, says in (
        ({"source": "Liver in CT"}, "PromptSource"),
        ({"options": SegmentOptions()}, "RunOptions"),
    ):
        with pytest.raises(TypeError, match=f"not a medals_rt.{says}; write {says}"):
            replace(job, **given)


def test_every_option_of_a_run_has_its_flag_in_run_and_batch() -> None:
    flags = inspect.signature(run_options).parameters
    for command in (run_command, batch_command):
        parameters = inspect.signature(command).parameters
        assert set(flags) <= set(parameters)
        assert not {"options", "source"} & set(parameters)
    made = run_options(**{name: flag.default for name, flag in flags.items()})
    assert made == RunOptions()


def test_the_options_that_decide_a_result() -> None:
    every = {each.name for each in fields(RunOptions)}
    assert every - set(RunOptions().deciding()) >= {"bundle", "threads", "max_voxels"}
    decides = RunOptions().deciding()["segment"]
    assert set(decides) == {
        *("preset", "refinement", "seed", "window", "postprocess", "time_budget"),
        *("stages", "start_from", "iterations", "repetitions", "block_sizes"),
        *("lesion_iterations", "threshold", "overlap", "mirrored"),
    }
    for options in (SegmentOptions(time_budget=1), SegmentOptions(seed=1)):
        assert RunOptions(segment=options).deciding() != RunOptions().deciding()
    lighter = RunOptions(segment=SegmentOptions(max_memory=2**30))
    assert lighter.deciding() == RunOptions().deciding()
    assert RunOptions(threads=1).deciding() == RunOptions().deciding()


def test_flags_take_the_place_of_what_they_make() -> None:
    def pair(*, left: int = 1, right: Annotated[int, typer.Option(min=0)] = 2) -> tuple[int, int]:
        return left, right

    @takes(both=pair)
    def command(*, first: int, both: tuple[int, int], last: str = "z") -> None:
        """Print what it was given."""
        typer.echo(f"{first} {both} {last}")

    assert list(inspect.signature(command).parameters) == ["first", "left", "right", "last"]
    assert set(get_type_hints(command)) == {"first", "left", "right", "last"}
    small = typer.Typer()
    small.command()(command)
    result = CliRunner().invoke(small, ["7", "--right", "5"])
    assert result.stdout == "7 (1, 5) z\n"
    assert CliRunner().invoke(small, ["7", "--right", "-5"]).exit_code == 2


def test_ctrl_c_while_the_command_line_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from medals_rt import __main__ as start

    class Interrupts:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "medals_rt.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "medals_rt.cli", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupts(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        start.main()
    assert ended.value.code == 130


def test_the_package_is_a_command_too() -> None:
    command = [sys.executable, "-m", "medals_rt", "version", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "medals-rt" in json.loads(done.stdout)


def test_sizes_of_memory_are_read_from_words(tiny_bundle: Bundle, tmp_path: Path) -> None:
    case, output = write_case(tmp_path / "a.npz"), tmp_path / "s.npz"
    more = ("--quiet", "--time-budget", 60)
    result = CliRunner().invoke(app, words(tiny_bundle, case, output, *more, "--max-memory", "4GB"))
    assert (result.exit_code, result.stderr) == (0, "")
    result = CliRunner().invoke(app, words(tiny_bundle, case, output, "--max-memory", "much"))
    assert result.exit_code == 2
    assert result.stderr.startswith("error: 'much' ")


@pytest.mark.parametrize(("most", "drawn"), [(32, 3), (1, 1)])
def test_the_picture_tells_lesions_apart(
    most: int, drawn: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shown: dict[int, str] = {}

    def note(*given: object, **_: object) -> None:
        _path, _image, labels, _spacing, names = given
        assert isinstance(names, dict)
        shown.update(names)
        assert set(np.unique(labels)) - {0} <= set(names)

    monkeypatch.setattr(job_writing, "save_preview", note)
    monkeypatch.setattr(job_writing, "_MOST_DRAWN", most)
    case = read_case(write_case(tmp_path / "a.npz"))
    instances = np.zeros(case.volume.shape_dhw, np.uint8)
    instances[1, 1, 1:4] = (1, 2, 3)
    labels = (instances > 0).astype(np.uint8)
    prompts = numbered(("Liver tumors in abdominal CT",), "lesion")
    draw_preview(tmp_path / "a.png", case.volume, labels, prompts, instances_dhw=instances)
    assert len(shown) == drawn
    assert shown[1] == ("Liver tumors 1" if drawn == 3 else "Liver tumors")


def test_spatial_prompts_on_another_grid_are_resampled_where_that_is_asked(tmp_path: Path) -> None:
    labels = np.zeros((6, 8, 10), np.uint8)
    labels[2:4, 2:5, 3:7] = 1
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    fine = np.repeat(labels.transpose(2, 1, 0), 2, axis=2)
    finer = affine.copy()
    finer[2, 2], finer[2, 3] = 1.5, -0.75
    for name, array, place in (
        ("scan", labels.transpose(2, 1, 0) + 9, affine),
        ("drawn", fine, finer),
        ("away", fine, finer + 500 * np.eye(4, k=3)),
    ):
        nibabel.save(nibabel.Nifti1Image(array, place), tmp_path / f"{name}.nii.gz")
    volume = read_case(tmp_path / "scan.nii.gz").volume
    with raises(CaseError, "annotation-on-another-grid", "--resample"):
        read_annotation(tmp_path / "drawn.nii.gz", volume)
    found, notes = read_annotation(tmp_path / "drawn.nii.gz", volume, resample=True)
    np.testing.assert_array_equal(found > 0, volume.image_dhw == 10)
    assert [note.code for note in notes] == ["annotation-resampled"]
    with raises(CaseError, "annotation-outside"):
        read_annotation(tmp_path / "away.nii.gz", volume, resample=True)
    placeless = replace(volume, source=SourceGrid())
    with raises(CaseError, "place-unknown"):
        read_annotation(tmp_path / "drawn.nii.gz", placeless, resample=True)


def test_labels_are_told_by_the_names_that_a_viewer_keeps(tmp_path: Path) -> None:
    """3D Slicer numbers segments in its own order when it saves them."""
    image = np.zeros((6, 8, 10), np.int16)
    nibabel.save(nibabel.Nifti1Image(image.T, np.diag([2.0, 2.0, 3.0, 1.0])), tmp_path / "s.nii.gz")
    volume = read_case(tmp_path / "s.nii.gz").volume
    labels = np.zeros(volume.shape_dhw, np.uint8)
    labels[1:3], labels[4] = 1, 2
    prompts = parse_prompts({"1": "Spleen in abdominal CT", "2": "Liver in abdominal CT"})

    def drawn(**names: str) -> Path:
        file = SimpleITK.GetImageFromArray(volume.restore(labels))
        file.CopyInformation(SimpleITK.ReadImage(tmp_path / "s.nii.gz"))
        for number, (label, name) in enumerate(names.items()):
            file.SetMetaData(f"Segment{number}_LabelValue", label.removeprefix("of"))
            file.SetMetaData(f"Segment{number}_Name", name)
        SimpleITK.WriteImage(file, tmp_path / "d.seg.nrrd")
        return tmp_path / "d.seg.nrrd"

    found, (note,) = read_annotation(drawn(of1="Liver", of2="spleen"), volume, prompts)
    np.testing.assert_array_equal(found, np.where(labels > 0, 3 - labels, 0))
    assert note.code == "annotation-renumbered"
    assert "Liver 1, here 2" in note.text
    for names in ({"of1": "Spleen", "of2": "Liver"}, {"of1": "mine", "of2": "Liver"}, {}):
        found, notes = read_annotation(drawn(**names), volume, prompts)
        np.testing.assert_array_equal(found, labels)
        assert notes == ()
    with raises(CaseError, "annotation-names", "Heart 2"):  # which is no liver
        read_annotation(drawn(of1="Spleen", of2="Heart"), volume, prompts)
    for names in ({"of1": "Liver", "of2": "mine"}, {"of1": "Liver", "of2": "liver"}):
        with raises(CaseError, "annotation-names", "number them as the prompts do"):
            read_annotation(drawn(**names), volume, prompts)
