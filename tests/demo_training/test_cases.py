"""Held-out phantoms as challenge cases."""

import json
from pathlib import Path

import numpy as np

from demo_training.cases import CaseRecipe, make_case, read_check_case, write_case

SMALL = CaseRecipe(3, spacing_hwd_mm=(6.0, 6.5, 8.0), tumor_count=4)


def test_an_anatomy_case_has_what_its_prompts_ask_for(tmp_path: Path) -> None:
    path = write_case(tmp_path, "anatomy", SMALL)
    prompts = json.loads((tmp_path / "anatomy.prompts.json").read_text(encoding="utf-8"))
    assert prompts["instance_label"] == 0
    with np.load(path) as data:
        assert data["imgs"].dtype == np.int16
        assert data["imgs"].shape == data["gts"].shape == (41, 50, 58)
        assert data["spacing"].tolist() == [6.0, 6.5, 8.0]
        present = set(np.unique(data["gts"])) - {0}
        assert present == {int(key) for key in prompts if key.isdigit()}
        names = {key: prompts[str(key)] for key in present}
        left = next(k for k, v in names.items() if v.startswith("Left lung"))
        right = next(k for k, v in names.items() if v.startswith("Right lung"))
        # the last axis of a file runs to the patient's left
        assert (
            np.argwhere(data["gts"] == left)[:, 2].mean()
            > np.argwhere(data["gts"] == right)[:, 2].mean()
        )


def test_a_lesion_case_numbers_its_instances() -> None:
    arrays, prompts = make_case(CaseRecipe(4, kind="lesion", tumor_count=3))
    assert prompts == {"1": "Liver tumors in abdominal CT", "instance_label": 1}
    assert 1 <= arrays["gts"].max() <= 3


def test_a_check_case_comes_back_in_the_axes_of_the_network(tmp_path: Path) -> None:
    arrays, _ = make_case(SMALL)
    path = tmp_path / "check.npz"
    np.savez(path, **arrays)
    path.with_suffix(".labels.json").write_text(
        json.dumps({"1": "Left lung", "2": "Right lung"}), encoding="utf-8"
    )
    case = read_check_case(path, "lung")
    assert case.image_hwd.shape == (50, 58, 41)
    assert case.truth.shape == (2, 50, 58, 41)
    assert case.image_hwd.min() >= 0
    assert case.image_hwd.max() <= 255
    assert (case.truth[0].transpose(2, 0, 1) == (arrays["gts"] == 1)).all()
