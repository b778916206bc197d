"""Released checkpoints in a folder, told apart by the window and spacing in their names."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from medals_rt.common.errors import InputError
from medals_rt.common.typing import Shape, Spacing

TEXT_ENCODER_FILE: Final = "text_encoder.pth"
_NAME: Final = re.compile(
    r"crop_size_(?P<window>\d+_\d+_\d+)_spacing_(?P<spacing>[\d.]+_[\d.]+_[\d.]+?)(?:_|\.pth|$)"
)


@dataclass(frozen=True)
class ReleasedFiles:
    """The files of a release; `text_encoder` is None where it has none."""

    coarse: Path
    fine: Path
    text_encoder: Path | None


def parse_released_name(name: str) -> tuple[Shape | None, Spacing | None]:
    """Return window and spacing from a file name in the released manner; None where it is not.

    Such a name has ``crop_size_H_W_D_spacing_a_b_c`` in it.
    """
    match = _NAME.search(name)
    if match is None:
        return None, None
    h, w, d = (int(part) for part in match["window"].split("_"))
    a, b, c = (float(part) for part in match["spacing"].split("_"))
    return (h, w, d), (a, b, c)


def find_released(folder: Path) -> ReleasedFiles:
    """Find the checkpoints of both stages, wherever in a folder: the coarse has the larger voxels.

    Raises
    ------
    InputError
        If there are not two checkpoints of different spacing with released names
        (``"checkpoints-not-found"``), or several text encoders (``"text-encoder-ambiguous"``).
    """
    stages: dict[Path, float] = {}
    for path in sorted(folder.rglob("*.pth")):
        _, spacing = parse_released_name(path.name)
        if spacing is not None:
            stages[path] = math.prod(spacing)
    if len(stages) != 2 or len(set(stages.values())) != 2:
        found = ", ".join(str(path.relative_to(folder)) for path in stages) or "none"
        raise InputError(
            f"{folder} must hold two checkpoints (.pth) of different spacing whose names have "
            f"crop_size_H_W_D_spacing_a_b_c in them; found: {found}; name them by --stage1 and "
            "--stage2",
            code="checkpoints-not-found",
        )
    fine, coarse = sorted(stages, key=stages.__getitem__)
    encoders = sorted(folder.rglob(TEXT_ENCODER_FILE))
    if len(encoders) > 1:
        found = ", ".join(str(path.relative_to(folder)) for path in encoders)
        raise InputError(
            f"{folder} holds several text encoders: {found}; name one by --text-encoder",
            code="text-encoder-ambiguous",
        )
    return ReleasedFiles(coarse, fine, next(iter(encoders), None))
