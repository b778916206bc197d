"""Scores of files and folders: what counts, what is matched, what is written."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from medals_rt.cli import app
from medals_rt.common.errors import CaseError, InputError, MissingFileError
from medals_rt.io.case import LabelFile
from medals_rt.io.registry import read_case, write_segmentation
from medals_rt.prompts.prompt_set import parse_prompts
from medals_rt.tools.evaluate.evaluation import evaluate, score_case
from medals_rt.tools.evaluate.scores import COLUMNS
from medals_rt.tools.evaluate.surface import surface_dice
from tests.dicom import write_series
from tests.errors import raises
from tests.paths import ROOT

SPACING_HWD = (1.0, 1.0, 4.0)
PROMPTS = {"1": "Liver in abdominal CT", "3": "Spleen in abdominal CT", "instance_label": 0}
LESIONS = {"1": "Liver tumors in CT", "instance_label": 1}


def anatomy(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A reference with labels 1, 2, 3 and a prediction that errs."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal((16, 32, 30)), 2)
    reference = np.digitize(smooth, np.quantile(smooth, [0.7, 0.85, 0.95])).astype(np.uint8)
    return np.roll(reference, 1, axis=1), reference


def lesions() -> tuple[np.ndarray, np.ndarray]:
    """A binary prediction with two hits and a false alarm; three instances in the reference."""
    reference = np.zeros((10, 20, 20), np.uint8)
    reference[1:4, 1:5, 1:5], reference[5:9, 10:15, 10:15], reference[1:3, 15:18, 1:4] = 1, 2, 3
    predicted = np.zeros_like(reference)
    predicted[1:4, 1:5, 1:4], predicted[5:9, 10:15, 11:15] = 1, 1
    predicted[8:10, 1:4, 16:19] = 1
    return predicted, reference


def save(path: Path, **fields: object) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    np.savez(path, **fields)
    return path


def save_pair(
    folder: Path, name: str, pair: tuple[np.ndarray, np.ndarray], prompts: dict
) -> tuple[Path, Path]:
    predicted, reference = pair
    spacing = np.array(SPACING_HWD)
    return (
        save(folder / "pred" / f"{name}.npz", segs=predicted, spacing=spacing),
        save(
            folder / "gt" / f"{name}.npz",
            gts=reference,
            segs=np.zeros_like(reference),
            spacing=spacing,
            text_prompts=np.array(prompts, dtype=object),
        ),
    )


def test_anatomy_by_the_public_script(tmp_path: Path) -> None:
    """Labels that were asked for and are in the reference; the stored spacing unpermuted."""
    pair = anatomy(0)
    (case,) = evaluate(*save_pair(tmp_path, "a", pair, PROMPTS)).cases
    assert [(one.label, one.name) for one in case.labels] == [(1, "Liver"), (3, "Spleen")]
    predicted, reference = pair
    for one in case.labels:
        p, r = predicted == one.label, reference == one.label
        assert one.dsc == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()))
        assert one.nsd_official == pytest.approx(surface_dice(r, p, (1.0, 1.0, 4.0)))
        assert one.nsd_geometry == pytest.approx(surface_dice(r, p, (4.0, 1.0, 1.0)))
        assert one.nsd_official != one.nsd_geometry
    assert case.mean("dsc") == pytest.approx(np.mean([one.dsc for one in case.labels]))
    assert case.instances is None


def test_without_prompts_every_label_counts(tmp_path: Path) -> None:
    predicted, reference = anatomy(0)
    spacing = np.array(SPACING_HWD)
    files = (
        save(tmp_path / "p.npz", segs=predicted),
        save(tmp_path / "r.npz", gts=reference, spacing=spacing),
    )
    (case,) = evaluate(*files).cases
    assert [(one.label, one.name) for one in case.labels] == [
        (1, "label 1"),
        (2, "label 2"),
        (3, "label 3"),
    ]
    (case,) = evaluate(*files, prompts=parse_prompts({"2": "Liver in CT"})).cases
    assert [(one.label, one.name) for one in case.labels] == [(2, "Liver")]


def test_sentences_that_name_no_class_still_name_labels(tmp_path: Path) -> None:
    prompts = {"1": "some unheard-of thing", "instance_label": 0}
    (case,) = evaluate(*save_pair(tmp_path, "a", anatomy(0), prompts)).cases
    assert [one.name for one in case.labels] == ["some unheard-of thing"]


def test_lesions(tmp_path: Path) -> None:
    files = save_pair(tmp_path, "a", lesions(), LESIONS)
    scores = evaluate(*files)
    (case,) = scores.cases
    assert case.kind == "lesion"
    found = case.instances
    assert (found.true_positives, found.false_positives, found.false_negatives) == (2, 1, 1)
    assert found.f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    dice = [2 * 36 / (36 + 48), 2 * 80 / (80 + 100)]
    assert found.dsc_tp == pytest.approx(np.mean(dice))
    assert scores.to_dict()["mean_f1"] == found.f1
    assert scores.to_dict()["mean_dsc"] is None


def test_numbered_predictions_are_taken_as_they_are(tmp_path: Path) -> None:
    predicted, reference = lesions()
    instances = np.where(predicted > 0, 7, 0).astype(np.uint32)
    prediction = save(tmp_path / "p.npz", segs=predicted, instances=instances)
    truth = save(tmp_path / "r.npz", gts=reference, spacing=np.ones(3))
    (case,) = evaluate(prediction, truth, kind="lesion").cases
    assert (case.instances.true_positives, case.instances.false_positives) == (1, 0)


def test_a_binary_reference_is_one_instance_unless_split(tmp_path: Path) -> None:
    predicted, reference = lesions()
    files = save_pair(tmp_path, "a", (predicted, (reference > 0).astype(np.uint8)), LESIONS)
    assert evaluate(*files).cases[0].instances.false_negatives == 1
    split = evaluate(*files, split_reference=True).cases[0].instances
    assert (split.true_positives, split.false_negatives) == (2, 1)


def test_a_reference_that_reads_as_one_lesion_is_told(tmp_path: Path) -> None:
    predicted, reference = lesions()
    binary = (reference > 0).astype(np.uint8)
    one = save_pair(tmp_path, "a", (binary, binary), LESIONS)
    (case,) = evaluate(*one).cases
    assert case.instances is not None
    assert case.instances.f1 == 0.5
    assert [note.code for note in case.notes] == ["reference-one-lesion"]
    assert "--split-reference takes its 3 pieces apart" in case.notes[0].text
    assert evaluate(*one, split_reference=True).cases[0].notes == ()
    single = (reference == 1).astype(np.uint8)
    for name, of_case in (("b", reference), ("c", single)):
        files = save_pair(tmp_path, name, (predicted, of_case), LESIONS)
        assert evaluate(*files).cases[0].notes == ()


def test_a_reference_without_labels_is_told(tmp_path: Path) -> None:
    predicted, reference = anatomy(1)
    empty = np.zeros_like(reference)
    save_pair(tmp_path, "a", (predicted, reference), PROMPTS)
    save_pair(tmp_path, "b", (predicted, empty), PROMPTS)
    save_pair(tmp_path, "c", (predicted, reference * np.uint8(reference == 2)), PROMPTS)
    words = ["evaluate", str(tmp_path / "pred"), str(tmp_path / "gt")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "case b: the reference holds no label: not scored" in result.stderr
    assert "case c: the reference holds none of the labels that were asked for" in result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if "not scored" in line]
    assert [row[0] for row in rows] == ["b", "c"]
    files = save_pair(tmp_path, "d", (empty, empty), LESIONS)
    assert [note.code for note in evaluate(*files).cases[0].notes] == ["reference-empty"]


def test_folders(tmp_path: Path) -> None:
    save_pair(tmp_path, "a", anatomy(0), PROMPTS)
    save_pair(tmp_path, "b", anatomy(1), PROMPTS)
    save_pair(tmp_path, "c", lesions(), LESIONS)
    save_pair(tmp_path, "d", anatomy(2), PROMPTS)
    (tmp_path / "pred" / "d.npz").unlink()
    (tmp_path / "gt" / "c.npz").rename(tmp_path / "c.npz")
    (tmp_path / "gt" / "notes.txt").write_text("not a case", encoding="utf-8")
    seen = []
    scores = evaluate(
        tmp_path / "pred", tmp_path / "gt", progress=lambda *event: seen.append(event)
    )
    assert [case.case for case in scores.cases] == ["a", "b", "d"]
    assert scores.without_reference == ("c",)
    assert seen[-1] == ("", 3, 3)
    missing = scores.cases[2]
    assert missing.missing
    assert [one.dsc for one in missing.labels] == [0.0, 0.0]
    assert [one.nsd_official for one in missing.labels] == [0.0, 0.0]
    by_case = [case.mean("dsc") for case in scores.cases]
    assert scores.mean("dsc") == pytest.approx(np.mean(by_case))
    livers = [case.labels[0].dsc for case in scores.cases]
    assert scores.by_class("dsc")["Liver"] == pytest.approx(np.mean(livers))


def test_folders_below_count_under_the_names_of_a_batch(tmp_path: Path) -> None:
    for name in ("a", "later/b", "later/c"):
        save_pair(tmp_path, name, anatomy(0), PROMPTS)
    (tmp_path / "pred" / "later" / "c.npz").rename(tmp_path / "pred" / "c.npz")
    (tmp_path / "gt" / "later" / "back").symlink_to(tmp_path / "gt", target_is_directory=True)
    save_pair(tmp_path, ".hidden/d", anatomy(0), PROMPTS)
    scores = evaluate(tmp_path / "pred", tmp_path / "gt")
    assert [(case.case, case.missing) for case in scores.cases] == [
        ("a", False),
        ("later/b", False),
        ("later/c", True),
    ]
    assert scores.without_reference == ("c",)


def test_scans_beside_their_references_are_passed_over(tmp_path: Path) -> None:
    """DICOM slices are no cases that failed, unless a result has their name."""
    for name in ("a", "b"):
        save_pair(tmp_path, name, anatomy(0), PROMPTS)
    write_series(tmp_path / "gt" / "scan", np.zeros((2, 4, 5), np.int16), np.eye(4))
    slices = sorted((tmp_path / "gt" / "scan").iterdir())
    for path in slices:
        path.rename(path.with_name(f"{path.name}.dcm"))
    folders = [str(tmp_path / "pred"), str(tmp_path / "gt")]
    result = CliRunner().invoke(app, ["evaluate", *folders])
    assert result.exit_code == 0
    assert "passed over: scan/IM0000, scan/IM0001" in result.stdout
    assert evaluate(*map(Path, folders)).to_dict()["scans"] == ["scan/IM0000", "scan/IM0001"]
    (tmp_path / "gt" / "b.npz").unlink()
    (tmp_path / "gt" / "scan" / "IM0000.dcm").rename(tmp_path / "gt" / "b.dcm")
    (failed,) = evaluate(*map(Path, folders)).failed
    assert (failed.case, "no segmentation" in failed.error) == ("b", True)


def test_a_case_that_cannot_be_scored_leaves_the_others(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save_pair(tmp_path, name, anatomy(0), PROMPTS)
    save(tmp_path / "pred" / "b.npz", segs=np.zeros((3, 3, 3), np.uint8))
    (tmp_path / "gt" / "c.npz").write_bytes(b"no archive")
    table = tmp_path / "s.csv"
    result = CliRunner().invoke(
        app, ["evaluate", str(tmp_path / "pred"), str(tmp_path / "gt"), "--csv", str(table)]
    )
    assert result.exit_code == 1
    first, second, last = result.stderr.splitlines()[-3:]
    assert first.startswith("b failed: the prediction isn't on the reference's grid")
    assert second.startswith("c failed: ")
    assert last == "error: 2 of 3 cases could not be scored"
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows if row["error"]] == ["b", "c"]
    assert {row["case"] for row in rows if row["dsc"]} == {"a"}


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    _, truth = save_pair(tmp_path, "a", anatomy(0), PROMPTS)
    with raises(MissingFileError, "file-missing", "nothing"):
        evaluate(tmp_path / "nothing", truth)
    with raises(InputError, "file-and-folder"):
        evaluate(tmp_path, truth)
    (tmp_path / "empty").mkdir()
    with raises(MissingFileError, "no-label-files"):
        evaluate(tmp_path / "pred", tmp_path / "empty")
    small = save(tmp_path / "small.npz", segs=np.zeros((3, 3, 3), np.uint8))
    for resample, code in ((False, "grids-differ"), (True, "place-unknown")):
        with raises(CaseError, code, (3, 3, 3)):
            evaluate(small, truth, resample=resample)
    bare = LabelFile(np.ones((2, 2, 2), np.uint8), None, None)
    with raises(CaseError, "spacing-missing"):
        score_case("x", bare, bare, kind="anatomy")
    assert score_case("x", bare, bare, kind="lesion").instances.f1 == 1.0


def test_two_files_of_one_case_are_refused(tmp_path: Path) -> None:
    _, reference = anatomy(0)
    for name in ("a.npz", "a.NPZ"):
        save(tmp_path / "gt" / "x.npz", gts=reference, spacing=np.ones(3)).rename(
            tmp_path / "gt" / name
        )
    with raises(CaseError, "case-repeated"):
        evaluate(tmp_path / "gt", tmp_path / "gt")


def test_endings_in_capitals_are_found(tmp_path: Path) -> None:
    files = save_pair(tmp_path, "a", anatomy(0), PROMPTS)
    files[1].rename(files[1].with_name("a.NPZ"))
    (case,) = evaluate(tmp_path / "pred", tmp_path / "gt").cases
    assert (case.case, case.missing) == ("a", False)


def placed(array_kji: np.ndarray, affine_lps: np.ndarray, path: Path) -> Path:
    """Write labels at a place in space, in the order of their own axes."""
    image = SimpleITK.GetImageFromArray(array_kji)
    lengths = np.linalg.norm(affine_lps[:3, :3], axis=0)
    image.SetSpacing(lengths.tolist())
    image.SetDirection((affine_lps[:3, :3] / lengths).ravel().tolist())
    image.SetOrigin(affine_lps[:3, 3].tolist())
    path.parent.mkdir(exist_ok=True)
    SimpleITK.WriteImage(image, path)
    return path


def turned(degrees: float) -> np.ndarray:
    """Rotate about the axis to the head."""
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


HERE = np.diag([2.0, 2.0, 3.0, 1.0])
SHIFTED = HERE + np.array([[0, 0, 0, 30.0], [0] * 4, [0] * 4, [0] * 4])
TURNED = turned(30) @ HERE
SCALED = np.diag([2.0, 2.0, 2.0, 1.0]) @ HERE


@pytest.mark.parametrize(
    ("affine", "words"),
    [(SHIFTED, "shifted by 30 mm"), (TURNED, "turned by 30.0 degrees"), (SCALED, "spacing 4 x 4")],
)
@pytest.mark.parametrize("folders", [False, True])
def test_another_place_is_refused(
    tmp_path: Path, affine: np.ndarray, words: str, folders: bool
) -> None:
    _, labels = anatomy(0)
    truth = placed(labels, HERE, tmp_path / "gt" / "abc.nii.gz")
    found = placed(labels, affine, tmp_path / "pred" / "abc.nii.gz")
    files = [found.parent, truth.parent] if folders else [found, truth]
    ended = CliRunner().invoke(app, ["evaluate", *map(str, files)])
    assert (ended.exit_code, ended.stdout) == (1 if folders else 2, "")
    line, *more = ended.stderr.splitlines()
    assert more == (["error: 1 of 1 cases could not be scored"] if folders else [])
    assert line.startswith("abc failed" if folders else "error: case abc")
    assert words in line
    assert "--resample" in line
    ended = CliRunner().invoke(app, ["evaluate", *map(str, files), "--resample"])
    assert ended.exit_code == 0, ended.output
    assert words in ended.stderr
    assert "1.0000" not in ended.stdout


@pytest.mark.parametrize("affine", [SHIFTED, turned(31) @ HERE, SCALED])  # 30 makes ties
def test_resampled_scores_are_those_of_simpleitk(tmp_path: Path, affine: np.ndarray) -> None:
    _, labels = anatomy(0)
    truth = placed(labels, HERE, tmp_path / "gt.nii.gz")
    found = placed(labels, affine, tmp_path / "pred.nii.gz")
    (case,) = evaluate(found, truth, resample=True).cases
    images = [SimpleITK.ReadImage(path) for path in (found, truth)]
    moved = SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(*images, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
    )
    assert [note.code for note in case.notes][:1] == ["prediction-resampled"]
    for one in case.labels:
        p, r = moved == one.label, labels == one.label
        assert one.dsc == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()))


def test_another_orientation_of_the_same_place_is_the_same(tmp_path: Path) -> None:
    """Axes that run the other way, or in another order, hold the same voxels."""
    _, labels = anatomy(0)
    truth = placed(labels, HERE, tmp_path / "gt.nii.gz")
    flipped = HERE.copy()
    flipped[0] = [-2.0, 0, 0, 2.0 * (labels.shape[2] - 1)]
    swapped = HERE[:, [1, 0, 2, 3]]
    for name, array, affine in (
        ("flipped", labels[:, :, ::-1], flipped),
        ("swapped", labels.transpose(0, 2, 1), swapped),
    ):
        found = placed(np.ascontiguousarray(array), affine, tmp_path / f"{name}.nii.gz")
        (case,) = evaluate(found, truth).cases
        assert case.mean("dsc") == 1.0
        assert case.notes == ()


def test_segments_name_labels_and_pair_them(tmp_path: Path) -> None:
    """A result of one class has label 1 whatever the class; the reference numbers many."""
    _, labels = anatomy(0)
    image = SimpleITK.GetImageFromArray(labels)
    for place, name in enumerate(("Left lung", "Spleen", "Liver")):
        image.SetMetaData(f"Segment{place}_Name", name)
        image.SetMetaData(f"Segment{place}_LabelValue", str(place + 1))
    truth = tmp_path / "gt.seg.nrrd"
    SimpleITK.WriteImage(image, truth)
    liver = {"1": "Liver in abdominal CT", "instance_label": 0}
    found = save(
        tmp_path / "pred.npz",
        segs=(labels == 3).astype(np.uint8),
        spacing=np.ones(3),
        text_prompts=np.array(liver, dtype=object),
    )
    (case,) = evaluate(found, truth).cases
    assert [(one.label, one.name, one.dsc) for one in case.labels] == [(3, "Liver", 1.0)]
    assert [note.code for note in case.notes] == ["labels-paired-by-class"]
    (case,) = evaluate(found, truth, by_value=True).cases
    assert [(one.label, one.dsc) for one in case.labels] == [(1, 0.0)]
    assert [note.code for note in case.notes] == ["label-names-differ"]
    unnamed = save(tmp_path / "bare.npz", segs=(labels == 3).astype(np.uint8))
    (case,) = evaluate(unnamed, truth, prompts=parse_prompts(liver)).cases
    assert [(one.label, one.name, one.dsc) for one in case.labels] == [(3, "Liver", 1.0)]


def test_a_prediction_without_names_is_paired_by_value_aloud(tmp_path: Path) -> None:
    _, labels = anatomy(0)
    named = {"3": "Liver in abdominal CT", "instance_label": 0}
    truth = save(
        tmp_path / "gt.npz",
        gts=labels,
        spacing=np.ones(3),
        text_prompts=np.array(named, dtype=object),
    )
    (case,) = evaluate(save(tmp_path / "pred.npz", segs=labels), truth).cases
    assert [(note.code, note.severity) for note in case.notes] == [
        ("prediction-unnamed", "warning")
    ]


def test_prompts_beside_a_reference_name_its_labels(tmp_path: Path) -> None:
    _, labels = anatomy(0)
    truth = save(tmp_path / "gt.npz", gts=labels, spacing=np.ones(3))
    liver = {"1": "Liver in abdominal CT", "instance_label": 0}
    found = save(
        tmp_path / "pred.npz",
        segs=(labels == 3).astype(np.uint8),
        text_prompts=np.array(liver, dtype=object),
    )
    (case,) = evaluate(found, truth).cases
    assert [note.code for note in case.notes] == ["reference-unnamed"]
    (tmp_path / "gt.prompts.json").write_text(
        '{"1": "Left lung in CT", "2": "Aorta in CT", "3": "Liver in CT"}', encoding="utf-8"
    )
    (case,) = evaluate(found, truth).cases
    assert [(one.label, one.dsc) for one in case.labels] == [(3, 1.0)]


def test_segmentations_of_dicom(tmp_path: Path) -> None:
    """Their segments number classes as they like, and empty slices are left out."""
    labels = np.zeros((6, 16, 16), np.uint8)
    labels[1:3, 2:9, 3:8], labels[3:5, 4:9, 9:14] = 1, 2
    write_series(tmp_path / "ct", labels.astype(np.int16), HERE)
    case = read_case(tmp_path / "ct")
    both = {"1": "Liver in CT", "2": "Spleen in CT"}
    written = {"gt": (labels, parse_prompts(both))}
    spleen = (labels == 2).astype(np.uint8)
    written["pred"] = (spleen, parse_prompts({"1": "Spleen in CT"}))
    for name, (array, prompts) in written.items():
        for ending in (".dcm", ".nii.gz"):
            (tmp_path / name).mkdir(exist_ok=True)
            path = tmp_path / name / f"a{ending}"
            write_segmentation(path, case, array, prompts=prompts)
    pred, gt = tmp_path / "pred", tmp_path / "gt"
    (one,) = evaluate(pred / "a.dcm", gt / "a.dcm").cases
    assert [(each.label, each.name, each.dsc) for each in one.labels] == [(2, "Spleen", 1.0)]
    assert [note.code for note in one.notes] == ["labels-paired-by-class"]
    for files in ((gt / "a.dcm", gt / "a.nii.gz"), (gt / "a.nii.gz", gt / "a.dcm")):
        (one,) = evaluate(*files).cases
        assert [(each.name, each.dsc) for each in one.labels] == [("Liver", 1.0), ("Spleen", 1.0)]


def test_no_label_in_both_is_a_warning(tmp_path: Path) -> None:
    _, labels = anatomy(0)
    truth = save(tmp_path / "gt.npz", gts=labels, spacing=np.ones(3))
    found = save(tmp_path / "pred.npz", segs=np.where(labels == 3, 7, 0).astype(np.uint8))
    (case,) = evaluate(found, truth).cases
    (note,) = case.notes
    assert (note.code, note.severity) == ("no-label-shared", "warning")
    ended = CliRunner().invoke(app, ["evaluate", str(found), str(truth), "--quiet"])
    assert ended.exit_code == 0
    assert ended.stderr.startswith("warning: case gt: ")


def test_lesions_of_different_organs_are_refused(tmp_path: Path) -> None:
    predicted, reference = lesions()
    found, truth = save_pair(tmp_path, "a", (predicted, reference), LESIONS)
    prompts = {"1": "Kidney tumors in CT", "instance_label": 1}
    found = save(
        found,
        segs=predicted,
        spacing=np.array(SPACING_HWD),
        text_prompts=np.array(prompts, dtype=object),
    )
    with raises(CaseError, "no-class-shared"):
        evaluate(found, truth)
    assert evaluate(found, truth, by_value=True).cases[0].kind == "lesion"


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    save_pair(tmp_path, "a", anatomy(0), PROMPTS)
    save_pair(tmp_path, "c", lesions(), LESIONS)
    out = tmp_path / "scores"
    arguments = ["evaluate", str(tmp_path / "pred"), str(tmp_path / "gt")]
    arguments += ["--json", str(out / "s.json"), "--csv", str(out / "s.csv")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for word in ("Liver", "Spleen", "F1", "0.6667"):
        assert word in result.stdout
    assert re.search(r"DSC +NSD official +NSD geometry *\n", result.stdout)
    content = json.loads((out / "s.json").read_text(encoding="utf-8"))
    liver = content["cases"][0]["labels"][0]
    shown = [f"{liver[name]:.4f}" for name in ("dsc", "nsd_official", "nsd_geometry")]
    assert re.search(r" +".join(("Liver", *shown)), result.stdout)
    assert set(content["dsc"]) == {"Liver", "Spleen"}
    assert content["mean_dsc"] == pytest.approx(np.mean(list(content["dsc"].values())))
    with (out / "s.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["name"]) for row in rows] == [
        ("a", "Liver"),
        ("a", "Spleen"),
        ("a", ""),
        ("c", ""),
    ]
    assert float(rows[0]["dsc"]) == pytest.approx(content["dsc"]["Liver"], rel=1e-5)
    assert float(rows[3]["f1"]) == pytest.approx(content["mean_f1"], rel=1e-5)
    assert sorted(path.name for path in out.iterdir()) == ["s.csv", "s.json"]
    failed = CliRunner().invoke(app, [*arguments[:2], str(tmp_path / "none")])
    assert failed.exit_code == 2
    assert failed.stderr.count("\n") == 1


def test_means_skip_what_is_undefined(tmp_path: Path) -> None:
    predicted, reference = anatomy(0)
    pair = (predicted, np.where(reference == 3, 0, reference).astype(np.uint8))
    scores = evaluate(*save_pair(tmp_path, "a", pair, PROMPTS))
    assert scores.by_class("dsc").keys() == {"Liver"}
    nothing = evaluate(*save_pair(tmp_path, "b", (predicted, 0 * reference), PROMPTS))
    assert math.isnan(nothing.mean("dsc"))
    assert nothing.to_dict()["mean_dsc"] is None


def test_every_name_of_the_scores_is_explained(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "batch.md").read_text(encoding="utf-8").partition("these names:")[2]
    quoted = set(re.findall(r"`([^`]+)`", page))
    content = evaluate(*save_pair(tmp_path, "a", anatomy(0), PROMPTS)).to_dict()
    assert {*content, *content["cases"][0], *COLUMNS} - quoted == set()
