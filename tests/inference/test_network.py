"""A stage's network put together from graphs, against the PyTorch network in one piece."""

import shutil

import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from medals_rt.bundle.bundle import Bundle
from medals_rt.common.errors import BundleError
from medals_rt.inference.graph_chains import JoinedGraphs, SingleGraphs
from medals_rt.inference.network import PassInput, StageNetwork
from medals_rt.inference.spatial_prompts import channel_prompts, label_prompts
from medals_rt.planning.sliding_window import plan_windows
from medals_rt.runners.base import Runner
from medals_rt.runners.selection import open_runner, precisions
from tests.bundles import TINY_SPACINGS_HWD_MM, tiny_checkpoint, tiny_config
from tests.errors import raises

TOLERANCE = 1e-4
MANY = 21  # more than a folded refiner takes
MORE = 40  # more than go through the classifier at once


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def network(request, tiny_bundle):
    with StageNetwork.open(tiny_bundle, 2, runner=request.param, precision="fp32") as opened:
        yield opened


def window_case(count):
    """Image, queries and spatial prompts, exclusive ones and ones that overlap."""
    rng = np.random.default_rng(count)
    window = tiny_config(2).window_hwd
    image = rng.random((1, 1, *window), np.float32) * 255
    queries = rng.standard_normal((count, 24), dtype=np.float32)
    label_map = rng.integers(0, count + 3, window).astype(np.uint8)
    windows = plan_windows(window, window)
    (exclusive,) = label_prompts(label_map, windows, range(1, count + 1), 4)
    overlapping = channel_prompts(rng.random((count, *window)) > 0.8, 4)
    return image, queries, (exclusive, overlapping)


def whole(network, *arguments, **options):
    """All classes of a pass, which must come in order and once."""
    classes, probabilities = zip(*network.predict(PassInput(*arguments, **options)), strict=True)
    wanted = options.get("classes") or slice(0, arguments[1].shape[0])
    assert [n for chunk in classes for n in range(chunk.start, chunk.stop)] == list(
        range(wanted.start, wanted.stop)
    )
    found = np.concatenate(probabilities)
    assert found.dtype == np.float32
    return found


def in_pytorch(image, queries, prompts):
    count = queries.shape[0]
    foreground, spatial = np.zeros_like(image), None
    if prompts is not None:
        foreground = prompts.foreground()
        spatial = torch.from_numpy(prompts.channels(count))[None]
    tensors = [torch.from_numpy(array) for array in (image, foreground, queries)]
    with torch.inference_mode():
        return tiny_checkpoint(2).model(*tensors, spatial)[0].sigmoid().numpy()


@pytest.mark.parametrize("count", [1, 3, 5, 16, 17, MORE])
def test_prompted_windows_are_those_of_pytorch(network, count):
    """Folded refiners of every width, padded and not, and many classes, `F_a` looked up or made."""
    image, queries, both = window_case(count)
    for prompts in both:
        found = whole(network, image, queries, prompts)
        expected = in_pytorch(image, queries, prompts)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("per_chunk", [32, 4])
def test_text_only_windows_are_those_of_pytorch(network, per_chunk):
    image, queries, _ = window_case(MANY)
    found = whole(network, image, queries, classes_per_chunk=per_chunk)
    expected = in_pytorch(image, queries, None)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("count", [5, MANY])
@pytest.mark.parametrize("prompted", [False, True])
def test_some_classes_are_those_of_all(network, count, prompted):
    """The prompts of the others still count: they are in `S_f` and `F_a`."""
    image, queries, both = window_case(count)
    prompts = both[0] if prompted else None
    expected = whole(network, image, queries, prompts, classes_per_chunk=2)
    wanted = slice(1, 4)
    found = whole(network, image, queries, prompts, classes=wanted, classes_per_chunk=2)
    np.testing.assert_allclose(found, expected[wanted], rtol=0, atol=1e-6)


@pytest.mark.parametrize("prompted", [False, True])
def test_a_class_alone_is_the_class_among_twenty(network, prompted):
    """Queries are independent: the others change nothing, as long as S_p is the same."""
    image, queries, _ = window_case(20)
    among = alone = None
    if prompted:
        shown = np.zeros((20, *image.shape[2:]), bool)
        shown[0] = np.random.default_rng(0).random(image.shape[2:]) > 0.8
        among, alone = channel_prompts(shown, 4), channel_prompts(shown[:1], 4)
    expected = whole(network, image, queries, among)[:1]
    found = whole(network, image, queries[:1], alone)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_passes_in_any_order_give_the_same_bytes(network):
    """Each chain of graphs gives its memory back to the next and takes it again."""
    image, queries, (prompts, _) = window_case(3)
    first = whole(network, image, queries, prompts)
    kept = first.copy()
    text_only = whole(network, image, queries)
    network.release()
    np.testing.assert_array_equal(whole(network, image, queries), text_only)
    np.testing.assert_array_equal(whole(network, image, queries, prompts), kept)
    np.testing.assert_array_equal(first, kept)


def opened(network):
    return set(network._graphs._pool.opened)


def test_graphs_are_opened_when_they_are_needed(tiny_bundle):
    with StageNetwork.open(tiny_bundle, 2, runner="onnxruntime") as network:
        assert opened(network) == {
            "image_encoder",
            "fusion_text_only",
            "query_decoder",
            "classifier",
        }
        network.prepare(3, prompted=True)
        assert opened(network) > {"refiner_4"}
        network.prepare(17, prompted=True)
        assert opened(network) > {"fusion"}


@pytest.mark.parametrize("runner", ["openvino", "onnxruntime"])
def test_a_bundle_exchanged_meanwhile_is_refused(tiny_bundle, tmp_path, monkeypatch, runner):
    """Another model would run under this one's name, and be kept under it for later processes."""
    monkeypatch.setenv("MEDALS_RT_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(tiny_bundle.folder, tmp_path / "bundle")
    with StageNetwork.open(Bundle.open(folder), 2, runner=runner) as network:
        kept = set((tmp_path / "cache").rglob("*.blob"))
        shutil.copy(folder / "fine/refiner_2.onnx", folder / "fine/refiner_4.onnx")
        with raises(BundleError, "bundle-changed", "refiner_4.onnx"):
            network.prepare(3, prompted=True)
        assert set((tmp_path / "cache").rglob("*.blob")) == kept
        network.prepare(2, prompted=True)


def test_runners_of_any_origin_make_a_network(tiny_bundle):
    graphs = SingleGraphs(lambda name: open_runner("onnxruntime", tiny_bundle.graph_path(2, name)))
    image, queries, (prompts, _) = window_case(MANY)
    with StageNetwork(tiny_bundle.stage_spec(2), graphs, "the reference") as network:
        assert network.info.why == "the reference"
        found = whole(network, image, queries, prompts)
    expected = in_pytorch(image, queries, prompts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("count", [17, MORE])
def test_bf16_hands_features_on_as_they_lie(tiny_bundle, count):
    """From text, exclusive and overlapping prompts; bf16 in NumPy is its bits, channels last."""
    if "bf16" not in precisions("openvino"):
        pytest.skip("this processor has no bf16 arithmetic")
    image, queries, both = window_case(count)
    with StageNetwork.open(tiny_bundle, 2, runner="openvino", precision="bf16") as network:
        for shown in (None, *both):
            found = whole(network, image, queries, shown, classes_per_chunk=8)
            error = found - in_pytorch(image, queries, shown)
            # Threads decide in which order sums are taken, and so to which neighbor in bf16 they
            # round: with 40 classes the largest error is 0.054 on one thread, 0.045 on more.
            # Rounded are the outputs of 13 convolutions and the logit, each by up to 2**-8 of its
            # size; logits reach 19, and a probability moves by at most a quarter of its logit. Of
            # errors that are independent that makes sqrt(14) * 19 * 2**-8 / 4 = 0.07.
            assert np.abs(error).max() < 0.1
            assert np.sqrt(np.mean(error**2)) < 0.01
        specs = {
            spec.name: (spec.shape, spec.dtype)
            for runner in network._graphs.opened
            for spec in (*runner.inputs, *runner.outputs)
        }
    window, channels = tiny_config(2).window_hwd, tiny_config(2).channels
    last = ((1, *window, channels), "uint16")
    assert specs["features"] == specs["refined"] == last
    assert specs["prompt_features"] == ((1, channels, *window), "float32")
    assert specs["probabilities"] == (("?", *window), "float32")


@pytest.mark.parametrize("count", [17, MORE])
def test_exclusive_prompts_are_looked_up_as_arrays_would_be(network, count):
    image, queries, (exclusive, _) = window_case(count)
    shown = np.stack([exclusive.index_hwd == n + 1 for n in range(count)])
    expected = whole(network, image, queries, channel_prompts(shown, 4))
    found = whole(network, image, queries, exclusive)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_many_classes_run_in_two_chains(tiny_bundle):
    """One that reads a voxel's class, and the classifier, whose memory is no reason to rest."""
    image, queries, (exclusive, _) = window_case(MORE)
    with StageNetwork.open(tiny_bundle, 2, runner="openvino", precision="fp32") as network:
        network.prepare(MORE, prompted=True)
        before = opened(network)
        first = whole(network, image, queries, exclusive)
        assert opened(network) == before
        assert network._graphs._working == ("image_encoder", "query_decoder", "fusion")
        np.testing.assert_array_equal(whole(network, image, queries, exclusive), first)
        whole(network, image, queries)
        assert network._graphs._working == ("image_encoder", "fusion_text_only")
        np.testing.assert_array_equal(whole(network, image, queries, exclusive), first)


class CountingRunner(Runner):
    """Notes in a shared list what is run and what is released."""

    name, kind, device, precision, version = "", "openvino", "cpu", "fp32", "1"
    threads, notes, inputs, outputs = 1, (), (), ()

    def __init__(self, chain, log):
        self.chain, self.log = chain, log

    def run(self, feeds):
        assert feeds == {}
        self.log.append(("run", self.chain))
        return {}

    def release(self):
        self.log.append(("release", self.chain))

    def close(self):
        self.log.append(("close", self.chain))


def test_memory_is_released_between_large_chains_and_at_the_end_of_a_stage():
    """Not before the classifier, whose chain is light, and once where nothing ran since."""
    log = []
    graphs = JoinedGraphs(lambda chain: CountingRunner(chain, log))
    first, second, light = ("image_encoder",), ("fusion",), ("classifier",)
    for chain in (first, light, first, second):
        graphs.run(chain, {})
    assert log == [
        *[("run", chain) for chain in (first, light, first)],
        ("release", first),
        ("run", second),
    ]
    log.clear()
    graphs.release()
    graphs.release()
    assert log == [("release", second)]
    log.clear()
    graphs.run(second, {})
    assert log == [("run", second)]  # what was released is no reason to release again
    with graphs.encoder:
        pass
    assert log[-1][0] == "close"


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
    with raises(BundleError, "graph-window", (16, 16, 16), (16, 16, 32)):
        StageNetwork.open(Bundle(tiny_bundle.folder, manifest), 2, runner="onnxruntime")
