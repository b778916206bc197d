"""Scores of files and folders: what counts, what is matched, what is written."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from medals_rt.cli import app
from medals_rt.common.errors import CaseError, InputError, MissingFileError
from medals_rt.io.case import LabelFile
from medals_rt.prompts.prompt_set import parse_prompts
from medals_rt.tools.evaluate.evaluation import evaluate, score_case
from medals_rt.tools.evaluate.surface import surface_dice

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
    path.parent.mkdir(exist_ok=True)
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


def test_folders(tmp_path: Path) -> None:
    save_pair(tmp_path, "a", anatomy(0), PROMPTS)
    save_pair(tmp_path, "b", anatomy(1), PROMPTS)
    save_pair(tmp_path, "c", lesions(), LESIONS)
    save_pair(tmp_path, "d", anatomy(2), PROMPTS)
    (tmp_path / "pred" / "d.npz").unlink()
    (tmp_path / "gt" / "c.npz").rename(tmp_path / "c.npz")
    (tmp_path / "gt" / "notes.txt").write_text("not a case")
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


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    _, truth = save_pair(tmp_path, "a", anatomy(0), PROMPTS)
    with pytest.raises(MissingFileError, match="nothing"):
        evaluate(tmp_path / "nothing", truth)
    with pytest.raises(InputError, match="two files or two folders"):
        evaluate(tmp_path, truth)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="empty"):
        evaluate(tmp_path / "pred", tmp_path / "empty")
    small = save(tmp_path / "small.npz", segs=np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(CaseError, match=r"\(3, 3, 3\)"):
        evaluate(small, truth)
    bare = LabelFile(np.ones((2, 2, 2), np.uint8), None, None)
    with pytest.raises(CaseError, match="spacing"):
        score_case("x", bare, bare, kind="anatomy")
    assert score_case("x", bare, bare, kind="lesion").instances.f1 == 1.0


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    save_pair(tmp_path, "a", anatomy(0), PROMPTS)
    save_pair(tmp_path, "c", lesions(), LESIONS)
    out = tmp_path / "scores"
    arguments = ["evaluate", str(tmp_path / "pred"), str(tmp_path / "gt")]
    arguments += ["--json", str(out / "s.json"), "--csv", str(out / "s.csv")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for word in ("Liver", "Spleen", "NSD as the public script", "F1", "0.6667"):
        assert word in result.stdout
    content = json.loads((out / "s.json").read_text())
    assert set(content["dsc"]) == {"Liver", "Spleen"}
    assert content["mean_dsc"] == pytest.approx(np.mean(list(content["dsc"].values())))
    with (out / "s.csv").open(newline="") as stream:
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
