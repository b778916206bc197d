"""Plans of cuDNN on a fake of it, and on a GPU against NumPy."""

import numpy as np
import pytest

from medals_rt.common.errors import RunnerError
from medals_rt.runners.cudnn.convolution import Convolutions
from tests.errors import raises
from tests.runners.reference import NumpyOperations

SHAPES = [
    ((8, 9, 10, 8), 32),
    ((16, 12, 20, 64), 64),
    ((6, 6, 6, 512), 768),
    ((7, 5, 9, 128), 64),
]


@pytest.fixture
def cudnn(fakes):  # noqa: ARG001 - it can be imported while they are in place
    import cudnn

    yield cudnn
    cudnn.refused = 0


def check(cupy, library, shape, outputs, stride):
    rng = np.random.default_rng(3)
    volume = rng.standard_normal(shape).astype(np.float16)
    weights = (rng.standard_normal((outputs, 3, 3, 3, shape[-1])) / 30).astype(np.float16)
    convolutions = Convolutions(cupy, library)
    convolutions.use_current_stream()
    found = convolutions.convolve(cupy.asarray(volume), cupy.asarray(weights), stride)
    wanted = NumpyOperations().convolve(volume, weights, stride)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.get(), wanted, rtol=2e-3, atol=2e-3)
    convolutions.close()


def check_upsampling(cupy, library, shape, outputs):
    rng = np.random.default_rng(4)
    volume = rng.standard_normal(shape).astype(np.float16)
    weights = (rng.standard_normal((shape[-1], 2, 2, 2, outputs)) / 10).astype(np.float16)
    convolutions = Convolutions(cupy, library)
    convolutions.use_current_stream()
    found = convolutions.upsample(cupy.asarray(volume), cupy.asarray(weights))
    wanted = NumpyOperations().upsample(volume, weights)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.get(), wanted, rtol=2e-3, atol=2e-3)
    convolutions.close()


def test_upsampling_on_the_fake(fakes, cudnn):
    check_upsampling(fakes.cupy, cudnn, (3, 4, 5, 16), 8)


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "outputs"), [((6, 6, 6, 768), 512), ((24, 20, 16, 64), 64)])
def test_upsampling_on_a_gpu(cupy, shape, outputs):
    import cudnn as library

    check_upsampling(cupy, library, shape, outputs)


@pytest.mark.parametrize("stride", [1, 2])
def test_shapes_strides_and_addresses_on_the_fake(fakes, cudnn, stride):
    check(fakes.cupy, cudnn, *SHAPES[0], stride)


@pytest.mark.gpu
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("shape", "outputs"), SHAPES)
def test_on_a_gpu(cupy, shape, outputs, stride):
    import cudnn as library

    check(cupy, library, shape, outputs, stride)


def test_a_plan_is_made_once_for_a_shape(fakes, cudnn):
    convolutions = Convolutions(fakes.cupy, cudnn)
    asked = [("convolve", (8, 8, 8, 16), (16, 3, 3, 3, 16), stride) for stride in (1, 2, 1)]
    first, other, again = (convolutions.plan(*each) for each in asked)
    assert first is again
    assert (first.shape, other.shape) == ((8, 8, 8, 16), (4, 4, 4, 16))


def test_plans_that_cannot_be_built_are_passed_over(fakes, cudnn):
    cudnn.refused = cudnn.PLANS - 1
    check(fakes.cupy, cudnn, *SHAPES[0], 1)
    cudnn.refused = cudnn.PLANS
    with raises(RunnerError, "convolution-refused", "(8, 9, 10, 8)", "not supported here"):
        check(fakes.cupy, cudnn, *SHAPES[0], 1)


def test_handles_are_freed(fakes, cudnn):
    before = len(cudnn.handles)
    convolutions = Convolutions(fakes.cupy, cudnn)
    assert len(cudnn.handles) == before + 1
    convolutions.close()
    convolutions.close()
    assert len(cudnn.handles) == before
