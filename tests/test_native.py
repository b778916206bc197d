"""The preset `native` against the authors' script for raw NIfTI files, end to end.

The script was run outside of this project on a chest CT with the demo model's weights in PyTorch,
fp32 (tests/data/native/README.md). ONNX Runtime in fp32 must agree in at least 99.9 % of voxels and
of each class's: rounding may flip a voxel near a threshold, and the bundle keeps fp16 weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

import medals_rt
from medals_rt.inference.refinement import BlockMask, MaskRequest, block_grid, mask_from_order
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Segmenter
from tests.paths import DATA, NATIVE, ROOT

AGREEMENT = 0.999
DICE = 0.99
PARTS = {
    "mirrored": (slice(5, 30), slice(22, 106), slice(22, 106)),
    "part": (slice(5, 30), slice(10, 118), slice(22, 106)),
}
PROMPTS = {
    "1": "Left lung in chest CT",
    "2": "Right lung in chest CT",
    "3": "Aorta in chest CT",
    "4": "Liver in abdominal CT",
    "5": "Heart in chest CT",
}


@dataclass
class CountedMasks:
    """The k-th masked pair of a case shows the first half of `default_rng(k).permutation`."""

    count: int = field(default=0)

    def __call__(self, request: MaskRequest) -> BlockMask:
        (block_size,) = request.block_sizes
        grid = block_grid(request.window_hwd, block_size)
        order = np.random.default_rng(self.count).permutation(int(np.prod(grid)))
        self.count += 1
        return mask_from_order(order, grid, block_size)


@pytest.fixture(scope="module")
def segmenter() -> Iterator[Segmenter]:
    with medals_rt.load(ROOT / "engines/demo", runner="onnxruntime", precision="fp32") as opened:
        yield opened


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("fine", {}, marks=pytest.mark.slow),
        ("both.part", {"stages": "both"}),
        pytest.param("fine.mirrored", {"mirrored": True}, marks=pytest.mark.slow),
    ],
)
def test_labels_are_those_of_the_script(
    segmenter: Segmenter, name: str, options: dict[str, object]
) -> None:
    volume = medals_rt.read_case(DATA / "ctchest4_image.nrrd").volume
    if chosen_part := PARTS.get(name.partition(".")[2]):
        volume = replace(volume, image_dhw=volume.image_dhw[chosen_part])
    chosen = SegmentOptions(preset="native", masks=CountedMasks(), **options)  # type: ignore[arg-type]
    result = segmenter.segment(volume, PROMPTS, chosen)
    with np.load(NATIVE / "chest.npz") as stored:
        theirs = stored[name]
    assert np.mean(result.labels_dhw == theirs) >= AGREEMENT
    for label in map(int, PROMPTS):
        ours_one, theirs_one = result.labels_dhw == label, theirs == label
        total = np.count_nonzero(ours_one) + np.count_nonzero(theirs_one)
        assert 2 * np.count_nonzero(ours_one & theirs_one) >= DICE * total
    windows = result.report.intensities["windows"]
    assert [(each["window"], each["labels"]) for each in windows] == [
        ("lung", [1, 2]),
        ("soft tissue", [3, 4, 5]),
    ]
