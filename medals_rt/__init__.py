"""Run exported Medal S models: text prompts and a volume in, a segmentation out, without torch.

>>> import medals_rt
>>> case = medals_rt.read_case("case.npz")
>>> with medals_rt.load("engines/demo") as segmenter:
...     result = segmenter.segment(case.volume, {"1": "Liver in abdominal CT"})
>>> result.labels_dhw  # (D, H, W), on the case's grid

Folders, from the ground up; each imports only those above it in this list (tests/test_layout.py):

- `common`: types, closed lists, arrays, errors, files, the machine
- `bundle`: an exported model on disk, its manifest, engines and recipes
- `runners`: inference libraries behind one protocol, one file each
- `prompts`: from sentences to classes and their text embeddings
- `io`: scans and label maps in files, one file a format
- `planning`: what will be computed, before anything is: rules, geometry, windows, memory, time
- `preprocessing`: intensities and resampling
- `postprocessing`: connected components and Algorithm 3
- `inference`: the network, its windows, and the coarse-to-fine cascade
- `pipeline`: a case from request to result: segmenter, job, report, preview, batch
- `tools`: evaluate, verify, bench, doctor
- `cli`: the command `medals-rt`, one file a command
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medals_rt.io.registry import read_case, write_segmentation
    from medals_rt.io.volume import Volume
    from medals_rt.pipeline.segmenter import Segmenter, load
    from medals_rt.prompts.prompt_set import parse_prompts, read_prompts

__version__ = "0.1.0"

__all__ = [
    "Segmenter",
    "Volume",
    "load",
    "parse_prompts",
    "read_case",
    "read_prompts",
    "write_segmentation",
]

_HOMES = {
    "Segmenter": "medals_rt.pipeline.segmenter",
    "Volume": "medals_rt.io.volume",
    "load": "medals_rt.pipeline.segmenter",
    "parse_prompts": "medals_rt.prompts.prompt_set",
    "read_case": "medals_rt.io.registry",
    "read_prompts": "medals_rt.prompts.prompt_set",
    "write_segmentation": "medals_rt.io.registry",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import medals_rt` stays light."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'medals_rt' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)
