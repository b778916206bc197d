"""A stage's network put together from graphs, against the PyTorch network in one piece."""

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from medals_rt.bundle import Bundle  # noqa: E402
from medals_rt.errors import BundleError  # noqa: E402
from medals_rt.network import StageNetwork  # noqa: E402
from tests.bundles import TINY_SPACINGS_HWD_MM, tiny_checkpoint, tiny_config  # noqa: E402

COUNT = 5
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def network(request, tiny_bundle):
    with StageNetwork.open(tiny_bundle, 2, runner=request.param, precision="fp32") as opened:
        yield opened


@pytest.fixture(scope="module")
def case():
    """Image, foreground prompt, queries, spatial prompts of one window."""
    rng = np.random.default_rng(11)
    window = tiny_config(2).window_hwd
    image = rng.random((1, 1, *window), np.float32) * 255
    queries = rng.standard_normal((COUNT, 24), dtype=np.float32)
    prompts = (rng.random((COUNT, *window), np.float32) > 0.8).astype(np.float32)
    foreground = prompts.any(axis=0).astype(np.float32)[None, None]
    return image, foreground, queries, prompts


def in_pytorch(image, foreground, queries, prompts):
    tensors = [torch.from_numpy(array) for array in (image, foreground, queries)]
    spatial = None if prompts is None else torch.from_numpy(prompts)[None]
    with torch.inference_mode():
        return tiny_checkpoint(2).model(*tensors, spatial)[0].sigmoid().numpy()


def test_prompted_window(network, case):
    found = network.predict(*case)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, in_pytorch(*case), rtol=0, atol=TOLERANCE)


def test_text_only_window_is_that_of_zero_prompts(network, case):
    image, foreground, queries, prompts = case
    found = network.predict(image, None, queries)
    zeros = np.zeros_like(foreground), np.zeros_like(prompts)
    expected = in_pytorch(image, zeros[0], queries, zeros[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    explicit = network.predict(image, zeros[0], queries, zeros[1])
    np.testing.assert_allclose(found, explicit, rtol=0, atol=TOLERANCE)


def test_classes_in_chunks_share_one_encoding(network, case):
    image, _, queries, _ = case
    encoded = network.encode(image)
    whole = network.refine(encoded, network.adapt(encoded, queries))
    chunks = [
        network.refine(encoded, network.adapt(encoded, queries[start : start + 2]))
        for start in range(0, COUNT, 2)
    ]
    np.testing.assert_allclose(np.concatenate(chunks), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prompted", [False, True])
def test_a_class_alone_is_the_class_among_twenty(network, case, prompted):
    """Queries are independent: the others change nothing, as long as S_p is the same."""
    image, _, _, prompts = case
    queries = np.random.default_rng(4).standard_normal((20, 24), dtype=np.float32)
    shown = np.zeros((20, *prompts.shape[1:]), np.float32)
    shown[0] = prompts[0]
    foreground = prompts[:1].max(axis=0)[None, None] if prompted else None
    among = network.predict(image, foreground, queries, shown if prompted else None)
    alone = network.predict(image, foreground, queries[:1], shown[:1] if prompted else None)
    np.testing.assert_allclose(alone[0], among[0], rtol=0, atol=1e-5)


def test_predict_is_its_three_steps(network, case):
    image, foreground, queries, prompts = case
    encoded = network.encode(image, foreground)
    steps = network.refine(encoded, network.adapt(encoded, queries), prompts)
    np.testing.assert_array_equal(network.predict(*case), steps)


def test_info_and_spec(tiny_bundle):
    with StageNetwork.open(tiny_bundle, 1, runner="onnxruntime", threads=1) as network:
        assert network.spec == tiny_bundle.stage_spec(1)
        assert network.spec.spacing_hwd_mm == TINY_SPACINGS_HWD_MM[1]
        assert network.array_device == "cpu"
        info = network.info
    assert (info.runner, info.why, info.precision) == ("onnxruntime", "asked for", "fp32")
    assert (info.threads, info.notes) == (1, ())


def test_graphs_for_another_window_are_refused(tiny_bundle):
    stages = tiny_bundle.manifest.stages
    wrong = msgspec.structs.replace(stages.fine, window_hwd=(16, 16, 32))
    manifest = msgspec.structs.replace(
        tiny_bundle.manifest, stages=msgspec.structs.replace(stages, fine=wrong)
    )
    with pytest.raises(BundleError, match=r"windows of \(16, 16, 16\).*\(16, 16, 32\)"):
        StageNetwork.open(Bundle(tiny_bundle.folder, manifest), 2, runner="onnxruntime")
