"""A scan that takes several windows of the tiny bundle: a bright box in noise."""

import numpy as np

from medals_rt.io.volume import Volume


def volume_of(seed: int) -> Volume:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (8, 20, 18), dtype=np.uint8)
    image[2:7, 4:15, 3:14] = 200
    return Volume(image, (4.0, 4.0, 6.0), name="noise")
