from __future__ import annotations

import numpy as np

from medals_rt.pipeline.report import class_summaries
from medals_rt.prompts.prompt_set import parse_prompts


def test_instances_are_counted_for_each_label() -> None:
    prompts = parse_prompts(
        {"1": "Liver tumors in abdominal CT", "2": "Kidney tumors in CT", "instance_label": 1}
    )
    labels = np.zeros((3, 4, 5), np.uint8)
    labels[0, 0, :2] = labels[2, 3, 4] = labels[1, 1, 1] = 1
    instances = np.zeros(labels.shape, np.uint32)
    instances[0, 0, :2], instances[1, 1, 1], instances[2, 3, 4] = 1, 2, 3
    liver, kidney = class_summaries(prompts, ("class", "class"), labels, instances, 0.5)
    assert (liver.voxels, liver.volume_ml, liver.components) == (4, 2.0, 3)
    assert (kidney.voxels, kidney.volume_ml, kidney.components) == (0, 0.0, 0)
    semantic = class_summaries(prompts, ("class", "class"), labels, None, 0.5)
    assert [each.components for each in semantic] == [None, None]
