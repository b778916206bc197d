"""What cuDNN itself plans for a GPU that it is only told of: no GPU is needed, but the library."""

import sys
from pathlib import Path

import pytest

from medals_rt.runners.cudnn.convolution import Plan

H200 = Path(__file__).with_name("h200.json")
"""Its properties as cuDNN asks for them, from what NVIDIA publishes; not read from one."""

WINDOWS = ((192, 192, 192), (224, 224, 128))
CHANNELS = (64, 64, 128, 256, 512, 768)
MOST_WORKSPACE_BYTES = 8 << 20
"""A plan that wants more copies the volume."""


@pytest.fixture(scope="module")
def library():
    """The package ``nvidia-cudnn-frontend``, with graphs for the GPU that is told of."""
    if "cudnn" in sys.modules:
        pytest.skip("the fake of cuDNN is imported in this process")
    cudnn = pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend with cuDNN")
    gpu = cudnn.create_device_properties(H200.read_text(encoding="utf-8"))

    class Library:
        def __getattr__(self, name):
            return getattr(cudnn, name)

        def pygraph(self, handle, **options):
            assert handle is None
            return cudnn.pygraph(device_property=gpu, **options)

    yield Library()
    del sys.modules["cudnn"]


def planned(library, kind, volume, weights, stride):
    plan = Plan(library, None, kind, volume, weights, stride)
    assert plan.workspace_bytes <= MOST_WORKSPACE_BYTES
    return plan.shape


def levels(window):
    return [tuple(size >> level for size in window) for level in range(len(CHANNELS))]


@pytest.mark.parametrize("window", WINDOWS)
def test_every_convolution_of_the_released_size(library, window):
    """The encoder's, then the decoder's, and those of prompts and features."""
    sizes = levels(window)
    shapes = {(sizes[0], 8, 64, 1), (sizes[0], 16, 64, 1), (sizes[0], 128, 64, 1)}
    for level, channels in enumerate(CHANNELS):
        before = level - 1 if level else 0
        shapes.add((sizes[before], CHANNELS[before] if level else 8, channels, 2 if level else 1))
        shapes |= {(sizes[level], each * channels, channels, 1) for each in (1, 2)}
    for size, channels, outputs, stride in shapes:
        weights = (outputs, 3, 3, 3, channels)
        found = planned(library, "convolve", (*size, channels), weights, stride)
        assert found == (*(-(-each // stride) for each in size), outputs)


@pytest.mark.parametrize("window", WINDOWS)
def test_every_upsampling_of_the_released_size(library, window):
    sizes = levels(window)
    for level, outputs in enumerate(CHANNELS[:-1]):
        below, channels = sizes[level + 1], CHANNELS[level + 1]
        weights = (channels, 2, 2, 2, outputs)
        found = planned(library, "upsample", (*below, channels), weights, 2)
        assert found == (*sizes[level], outputs)
