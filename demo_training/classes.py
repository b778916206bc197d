"""What the demo model can be asked for, and how a label array answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demo_training.subject import LABELS


@dataclass(frozen=True)
class Query:
    """One row of the embedding bank and the phantom labels that are its truth."""

    modality: str
    kind: str
    name: str
    id: int
    labels: tuple[int, ...]

    @property
    def bank_key(self) -> str:
        """Key of the embedding bank: modality, kind and id of the released class mapping."""
        return f"{self.modality}/{self.kind}/{self.id}"


def _anatomy(modality: str, ids: dict[str, int]) -> tuple[Query, ...]:
    tumor = LABELS["Liver tumors"]
    return tuple(
        Query(
            modality,
            "anatomy",
            name,
            number,
            (LABELS[name], tumor) if name == "Liver" else (LABELS[name],),
        )
        for name, number in ids.items()
    )


QUERIES: tuple[Query, ...] = (
    *_anatomy(
        "CT",
        {
            "Left lung": 46,
            "Right lung": 47,
            "Liver": 1,
            "Spleen": 3,
            "Left kidney": 5,
            "Right kidney": 2,
            "Aorta": 9,
            "Stomach": 8,
            "Heart": 48,
        },
    ),
    Query("CT", "lesion", "Liver tumors", 5, (LABELS["Liver tumors"],)),
    *_anatomy("MRI", {"Liver": 6, "Spleen": 1, "Left kidney": 3, "Right kidney": 2}),
)
"""Rows of the embedding bank, in order."""


def rows(modality: str, kind: str) -> list[int]:
    """Return the indices into `QUERIES` of one modality and kind."""
    return [i for i, q in enumerate(QUERIES) if q.modality == modality and q.kind == kind]


LUNG_ROWS = [i for i, q in enumerate(QUERIES) if q.modality == "CT" and q.name.endswith("lung")]


def masks_of(labels_hwd: NDArray[np.uint8], wanted: list[int]) -> NDArray[np.bool_]:
    """Truth of some queries: `(N, H, W, D)` bool from a phantom's labels `(H, W, D)`."""
    return np.stack([np.isin(labels_hwd, QUERIES[row].labels) for row in wanted])
