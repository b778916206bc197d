"""Held-out phantoms as challenge cases: `imgs`, `spacing`, `gts` and the prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo_training.classes import QUERIES, rows
from demo_training.intensities import scale_mr, scan, window_ct
from demo_training.phantoms import HELD_OUT_SEED, Grid, make_phantom
from demo_training.subject import LABELS
from demo_training.validation import CheckCase

_MODALITY_WORD = {"CT": "CT", "MRI": "MRI"}


@dataclass(frozen=True)
class CaseRecipe:
    """What a held-out case looks like. `number` counts from the first held-out seed."""

    number: int
    modality: str = "CT"
    kind: str = "anatomy"
    spacing_hwd_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)
    extent_hwd_mm: tuple[float, float, float] = (300.0, 375.0, 330.0)
    bottom_mm: float = -215.0
    noise: float = 10.0
    tumor_count: int | None = None


def make_case(recipe: CaseRecipe) -> tuple[dict[str, NDArray[np.generic]], dict[str, str | int]]:
    """Paint a held-out phantom as the arrays of a challenge file and its prompts.

    Returns
    -------
    arrays, prompts
        `imgs (D, H, W)` int16 in Hounsfield or MR units, `spacing (3)` in the order (H, W, D),
        `gts (D, H, W)` uint8 (labels of the prompts; for lesions one number an instance);
        prompts map label numbers to sentences, with `instance_label`.
    """
    shape = tuple(
        round(e / s) for e, s in zip(recipe.extent_hwd_mm, recipe.spacing_hwd_mm, strict=True)
    )
    grid = Grid((shape[0], shape[1], shape[2]), recipe.spacing_hwd_mm, recipe.bottom_mm)
    phantom = make_phantom(
        HELD_OUT_SEED + recipe.number,
        grid,
        modality=recipe.modality,
        tumor_count=recipe.tumor_count,
    )
    rng = np.random.default_rng([phantom.seed, 7])
    raw = scan(rng, phantom.image_hwd, recipe.modality, noise=recipe.noise, blur_voxels=0.5, slab=1)
    asked = [QUERIES[row] for row in rows(recipe.modality, recipe.kind)]
    prompts: dict[str, str | int] = {}
    truth = np.zeros(shape, np.uint8)
    if recipe.kind == "lesion":
        from scipy import ndimage

        truth = ndimage.label(phantom.labels_hwd == LABELS["Liver tumors"])[0].astype(np.uint8)
        prompts["1"] = f"{asked[0].name} in abdominal {_MODALITY_WORD[recipe.modality]}"
    else:
        for number, query in enumerate(asked, 1):
            truth[np.isin(phantom.labels_hwd, query.labels)] = number
            prompts[str(number)] = f"{query.name} in {_MODALITY_WORD[recipe.modality]}"
    prompts["instance_label"] = int(recipe.kind == "lesion")
    arrays: dict[str, NDArray[np.generic]] = {
        "imgs": np.rint(raw).clip(-1024, 3071).astype(np.int16).transpose(2, 0, 1),
        "spacing": np.asarray(recipe.spacing_hwd_mm, np.float32),
        "gts": truth.transpose(2, 0, 1),
    }
    return arrays, prompts


def write_case(folder: Path, name: str, recipe: CaseRecipe) -> Path:
    """Write `<name>.npz` and `<name>.prompts.json`; gives the path of the former."""
    arrays, prompts = make_case(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    whole = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    np.savez_compressed(path, imgs=whole["imgs"], spacing=whole["spacing"], gts=whole["gts"])
    (folder / f"{name}.prompts.json").write_text(json.dumps(prompts, indent=1), encoding="utf-8")
    return path


def read_check_case(path: Path, window: str = "soft tissue") -> CheckCase:
    """Read a CT case with `imgs` in Hounsfield units and `gts`, asked by exact class names.

    `<stem>.labels.json` beside it maps label numbers to names of CT anatomy, such as "Left lung".
    """
    names = json.loads(path.with_suffix(".labels.json").read_text(encoding="utf-8"))
    known = {QUERIES[row].name: row for row in rows("CT", "anatomy")}
    with np.load(path) as data:
        image = data["imgs"].astype(np.float32).transpose(1, 2, 0)
        labels = data["gts"].transpose(1, 2, 0)
        spacing = tuple(float(v) for v in data["spacing"])
    truth = np.stack([labels == int(number) for number in names])
    return CheckCase(
        f"{path.stem} {window}",
        scale_mr(image) if window == "none" else window_ct(image, window),
        truth,
        (spacing[0], spacing[1], spacing[2]),
        tuple(known[name] for name in names.values()),
    )
