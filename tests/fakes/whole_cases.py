"""Cases of the demo from image to labels, on the fake of a GPU and on the processor.

    python -m tests.fakes.whole_cases engines/demo

For a child process with `tests.fakes.environment()`; writes a line of JSON for each case.
"""

import json
import sys
from pathlib import Path

import numpy as np

from medals_rt.io.registry import read_case
from medals_rt.io.volume import Volume
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.prompts.prompt_set import read_prompts
from tests.fakes.gpu import put_in

MIDDLES_DHW = {"ct_anatomy": (62, 46, 70), "ct_liver_tumors": (48, 42, 40)}
HALF_A_SIDE = 20  # voxels; a whole case takes too long


def main(folder):
    put_in()
    with (
        Segmenter.open(folder, runner="onnxruntime", precision="fp32") as on_cpu,
        Segmenter.open(folder, runner="onnxruntime-cuda") as on_gpu,
    ):
        for name, volume, prompts, options in cases(folder / "cases"):
            wanted = on_cpu.segment(volume, prompts, **options)
            found = on_gpu.segment(volume, prompts, **options)
            told = {
                "case": name,
                "device": found.report.device,
                "labels": sorted(set(np.unique(found.labels_dhw).tolist()) - {0}),
                "differing_voxels": int((found.labels_dhw != wanted.labels_dhw).sum()),
            }
            sys.stdout.write(json.dumps(told) + "\n")


def cases(folder):
    """Organs from text and from text and a rough mask, and lesions: a part of each."""
    for name, middle_dhw in MIDDLES_DHW.items():
        volume = read_case(folder / f"{name}.npz").volume
        box = tuple(slice(at - HALF_A_SIDE, at + HALF_A_SIDE) for at in middle_dhw)
        part = Volume(np.ascontiguousarray(volume.image_dhw[box]), volume.spacing_hwd_mm, name)
        prompts = read_prompts(folder / f"{name}.prompts.json")
        yield f"{name}, text", part, prompts, {}
        if name == "ct_anatomy":
            rough = np.zeros(part.shape_dhw, np.uint8)
            rough[3:8, 5:20, 5:20] = prompts.labels[0]
            yield f"{name}, text and mask", part, prompts, {"spatial_prompts": rough}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
