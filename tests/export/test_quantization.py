"""Bundles of 8-bit convolutions: formats, ranges, the choice of layers, graphs, exports."""

import copy
import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from medals_export import export
from medals_export.arithmetic import ARITHMETICS
from medals_export.graph_plans import graph_plans
from medals_export.onnx_graphs import trace
from medals_export.quantization import calibrated, sensitivity
from medals_export.quantization.calibration import RecordedPass, RecordedStage
from medals_export.quantization.layers import (
    FUSION,
    candidates,
    inputs_watched,
    quantized_network,
)
from medals_export.quantization.number_format import FORMATS, weight_scales
from medals_export.quantization.ranges import Magnitudes, best_range
from medals_export.torch_reference import TorchReference
from medals_export.verify import reference_passes, verify_graph
from medals_rt.bundle.manifest import file_sha256
from medals_rt.common.errors import ExportError, InputError
from medals_rt.io.registry import read_case
from medals_rt.pipeline.segmenter import Segmenter
from medals_rt.prompts.prompt_set import parse_prompts
from medals_rt.tools.verify.layers import compare_layers
from medals_rt.tools.verify.references import Candidate
from tests.bundles import export_tiny_bundle, tiny_bank, tiny_checkpoint
from tests.errors import raises

GRAPHS = {"image_encoder", "refiner_text_only", "refiner_2", "fusion", "classifier"}
PROMPTS = {"1": "Liver in abdominal CT", "2": "Right kidney in abdominal CT", "instance_label": 0}


@pytest.fixture(scope="module")
def network():
    return tiny_checkpoint(2).model


def passes(network, count=2):
    """Made-up passes, one of them prompted."""
    rng = np.random.default_rng(5)
    window = network.config.window_hwd
    bank = torch.from_numpy(tiny_bank().class_embeddings[:2])
    for number in range(count):
        image = torch.from_numpy(rng.random((1, 1, *window), np.float32) * 255)
        prompts = torch.from_numpy(rng.random((2, *window)) > 0.7) if number else None
        yield RecordedPass(image, bank, prompts)


@pytest.fixture(scope="module")
def record(network):
    seen = RecordedStage({layer: Magnitudes() for layer in candidates(network)})
    chance = np.random.default_rng(0)
    with inputs_watched(network, candidates(network), seen.add):
        for one in passes(network):
            one.probabilities(network)
            seen.keep(one, chance)
    return seen


@pytest.fixture(scope="module", params=["int8", "fp8"])
def quantized(request, network, record):
    """A precision, its ranges, and the graphs in it."""
    precision = request.param
    number_format = FORMATS[precision]
    ranges = {layer: best_range(seen, number_format) for layer, seen in record.magnitudes.items()}
    plans = [
        plan for plan in graph_plans(network, ARITHMETICS[precision], ranges) if plan.name in GRAPHS
    ]
    return precision, ranges, {plan.name: (plan, model) for plan, model in trace(plans)}


@pytest.mark.parametrize("precision", FORMATS)
def test_codes_are_those_of_onnx(precision):
    number_format = FORMATS[precision]
    values = torch.tensor([-900.0, -1.0, -0.3, 0.0, 0.05, 0.15, 0.25, 3.0, 5.5, 900.0])
    scale = number_format.scale(torch.tensor(6.0))
    node = onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"])
    back = onnx.helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"])
    zero = onnx.helper.make_tensor("zero", number_format.onnx_type, (), bytes(1), raw=True)
    graph = onnx.helper.make_graph(
        [node, back],
        "q",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [10])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [10])],
        [numpy_helper.from_array(scale.numpy(), "scale"), zero],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    (expected,) = ReferenceEvaluator(model).run(None, {"x": values.numpy()})
    if precision == "int8":  # codes are symmetric, ONNX's saturate at -128
        expected[0] = -expected[-1]
    np.testing.assert_allclose(number_format.rounded(values, scale), expected, rtol=1e-6)


def test_each_output_channel_has_a_scale():
    weight = torch.zeros(3, 2, 3, 3, 3)
    weight[0, 1, 1, 1, 1], weight[1, 0, 0, 0, 0] = -12.7, 0.254
    scales = weight_scales(weight, FORMATS["int8"])
    np.testing.assert_allclose(scales.flatten()[:2], [0.1, 0.002], rtol=1e-6)
    assert torch.isfinite(FORMATS["int8"].rounded(weight, scales)).all()


def test_a_histogram_grows_with_what_it_counts():
    seen = Magnitudes()
    for largest in (0.5, 3.0, 40.0):
        seen.add(torch.linspace(-largest, largest, 1001))
    middles, counts = seen.histogram()
    assert seen.largest == 40.0
    assert counts.sum() == 3003
    # of the third part, those below 20 are every second; of the others all
    assert abs(counts[middles < 20].sum() - 2502) <= 2


def test_range_cuts_outliers_off_where_that_errs_less():
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.standard_normal(200_000).astype(np.float32))
    values[0] = 40.0
    seen = Magnitudes()
    seen.add(values)
    number_format = FORMATS["int8"]
    found = best_range(seen, number_format)

    def error(largest):
        rounded = number_format.rounded(values, number_format.scale(torch.tensor(largest)))
        return float((rounded - values).square().mean())

    assert found < 30
    assert error(found) < 1.05 * min(error(float(each)) for each in np.linspace(2, 40, 77))


def test_candidates_read_neither_the_image_nor_joined_channels(network):
    layers = candidates(network)
    assert "backbone.encoder.stages.0.0.convs.0.conv" not in layers
    assert layers[-1] == FUSION
    assert not [layer for layer in layers if "decoder" in layer and "convs.0" in layer]
    assert len(layers) == 2 * 3 - 1 + 2 + 1


def test_the_network_itself_stays_as_it_is(network, record):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ranges = {layer: seen.largest for layer, seen in record.magnitudes.items()}
    (one, _) = passes(network)
    exact = one.probabilities(network)
    rounded = one.probabilities(quantized_network(network, ranges, FORMATS["int8"]))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(one.probabilities(network), exact)
    assert 0 < (rounded - exact).abs().max() < 0.2


def test_convolutions_read_codes_with_a_scale_each(quantized):
    precision, ranges, graphs = quantized
    number_format = FORMATS[precision]
    _, model = graphs["image_encoder"]
    makers = {name: node for node in model.graph.node for name in node.output}
    stored = {item.name: item for item in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    found = {}
    for node in convolutions:
        values, weight = (makers.get(name) for name in node.input[:2])
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        assert values.op_type == "DequantizeLinear"
        assert makers[values.input[0]].op_type == "QuantizeLinear"
        codes, scales, zeros = (stored[name] for name in weight.input)
        assert codes.data_type == zeros.data_type == number_format.onnx_type
        assert list(scales.dims) == list(codes.dims)[:1]
        assert not any(zeros.raw_data)
        scale = float(numpy_helper.to_array(stored[values.input[1]]))
        found[weight.output[0]] = scale * number_format.largest
    expected = {
        f"network.{layer}.weight": largest for layer, largest in ranges.items() if layer != FUSION
    }
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(convolutions) == len(found) + 3  # the first, and two that read joined channels


def test_the_refiner_quantizes_the_half_that_reads_features(quantized):
    _, _, graphs = quantized
    for name, count in (("refiner_text_only", 1), ("refiner_2", 2), ("fusion", 2)):
        _, model = graphs[name]
        kinds = [node.op_type for node in model.graph.node]
        assert kinds.count("QuantizeLinear") == 1, name
        assert kinds.count("Conv") == count, name
    assert "QuantizeLinear" not in [each.op_type for each in graphs["classifier"][1].graph.node]


def test_graphs_compute_what_the_quantized_network_does(quantized, network, tmp_path):
    precision, ranges, graphs = quantized
    rounded = quantized_network(network, ranges, FORMATS[precision])
    references = reference_passes(rounded, network, tiny_bank().class_embeddings)
    for name, (plan, model) in graphs.items():
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        for record in verify_graph(path, plan, references[name], 2, ("openvino", "onnxruntime")):
            assert record.relative_error <= plan.arithmetic.tolerance
            assert record.rounding_error > 0 or name == "classifier"


def test_a_layer_that_a_graph_lacks_is_told(network):
    ranges = {"backbone.encoder.stages.9.0.convs.0.conv": 1.0}
    (plan,) = (
        plan
        for plan in graph_plans(network, ARITHMETICS["int8"], ranges)
        if plan.name == "image_encoder"
    )
    with raises(ExportError, "layer-not-found"):
        list(trace([plan]))


@pytest.mark.slow
def test_tensorrt_rtx_builds_the_graphs(quantized, tmp_path):
    trt = pytest.importorskip("tensorrt_rtx_bindings")
    precision, _, graphs = quantized
    log = trt.Logger(trt.Logger.ERROR)
    for name in ("image_encoder", "refiner_2"):
        path = tmp_path / f"{name}.onnx"
        onnx.save(graphs[name][1], path)
        builder = trt.Builder(log)
        strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        definition = builder.create_network(strongly_typed)
        parser = trt.OnnxParser(definition, log)
        assert parser.parse_from_file(str(path)), (precision, name)
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        assert builder.build_serialized_network(definition, config) is not None, (precision, name)


@pytest.mark.parametrize("allowed", [0.0, 0.02, 0.5, 1.0])
def test_the_fewest_of_the_most_sensitive_layers_stay(network, record, monkeypatch, allowed):
    layers = candidates(network)
    costs = dict(zip(layers, np.random.default_rng(1).permutation(len(layers)) / 100, strict=True))

    class Costs:
        def agreement(self, ranges):
            cost = sum(costs[layer] for layer in ranges)
            return cost, 1 - cost

    monkeypatch.setattr(sensitivity, "LEAST_DSC", 1 - allowed)
    found = sensitivity.choose_layers(Costs(), record, FORMATS["int8"], "fine", lambda *_: None)
    by_cost = sorted(costs, key=costs.__getitem__)
    fitting = np.cumsum([costs[layer] for layer in by_cost]) <= allowed + 1e-9
    assert {each.layer for each in found.layers if each.quantized} == set(
        by_cost[: int(fitting.sum())]
    )
    assert found.mean_dsc >= 1 - allowed - 1e-4
    assert [each.layer for each in found.layers] == list(layers)


def decided(network, record):
    number_format = FORMATS["int8"]
    trial = sensitivity.Trial(network, record.passes, number_format, "fine")
    return sensitivity.choose_layers(trial, record, number_format, "fine", lambda *_: None)


def test_sensitivity_is_the_error_of_a_layer_alone(network, record):
    found = decided(network, record)
    assert all(0 < each.error < 0.1 for each in found.layers)
    assert found.passes == 2
    assert 0 < found.rms_error < 0.1


def test_a_layer_that_reads_zeros_alone_is_left_as_it_is(network, record):
    class Harmless:
        def agreement(self, _):
            return 0.0, 1.0

    dead = candidates(network)[2]
    seen = dataclasses.replace(record, magnitudes={**record.magnitudes, dead: Magnitudes()})
    found = sensitivity.choose_layers(Harmless(), seen, FORMATS["int8"], "fine", lambda *_: None)
    assert [each.layer for each in found.layers if not each.quantized] == [dead]


def test_passes_that_find_nothing_decide_nothing(network, record):
    blind = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in blind.mask_embed_proj[2].parameters():
            parameter.zero_()  # every logit is 0, no probability above a half
    with raises(InputError, "calibration-shows-nothing", "fine"):
        decided(blind, record)


def test_a_stage_that_never_ran_is_told(network):
    with raises(InputError, "calibration-stage-unseen", "fine"):
        decided(network, RecordedStage({}))


def test_both_stages_are_looked_at_before_the_work(record, monkeypatch):
    records = {1: record, 2: RecordedStage({})}
    monkeypatch.setattr(calibrated, "record_cases", lambda *_: records)
    checkpoints = {stage: tiny_checkpoint(2) for stage in (1, 2)}
    monkeypatch.setattr(calibrated, "choose_layers", None)
    with raises(InputError, "calibration-stage-unseen", "fine"):
        calibrated.quantize_stages(None, checkpoints, FORMATS["int8"], (), lambda *_: None)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A case with its prompts beside it."""
    folder = tmp_path_factory.mktemp("cases")
    image = np.random.default_rng(2).integers(0, 256, (8, 16, 16)).astype(np.uint8)
    np.savez(folder / "one.npz", imgs=image, spacing=np.array([4, 4, 4], np.float32))
    (folder / "one.prompts.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
    return folder / "one.npz"


@pytest.fixture(scope="module")
def floats():
    """Calls of the export of floats that an export of integers begins with."""
    return []


@pytest.fixture(scope="module")
def bundle(case, tiny_bundle, floats, tmp_path_factory):
    """The minuscule network in int8, from the bundle of floats that there is of it."""

    def exported(*given, **options):
        floats.append((given, options))
        return tiny_bundle

    out = tmp_path_factory.mktemp("bundle") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_bundle", exported)
        return export_tiny_bundle(out, precision="int8", calibrate=case.parent, verify_with=())


@pytest.mark.slow  # exports a bundle and calibrates it
def test_export_calibrates_on_floats_of_the_same(bundle, floats):
    (((coarse, fine, bank, _), options),) = floats
    for stage, given in enumerate((coarse, fine), 1):
        expected = tiny_checkpoint(stage).model.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in given.model.state_dict().items())
    assert bank.class_rows == tiny_bank().class_rows
    assert options["verify_with"] == ()
    assert "precision" not in options
    assert bundle.precision == "int8"


@pytest.mark.slow  # exports a bundle and calibrates it
def test_export_records_the_decision(bundle, case):
    record = bundle.manifest.quantization
    assert bundle.precision == "int8"
    assert bundle.manifest.weights == "fp16"
    assert record.cases == (file_sha256(case),)
    for stage in (record.coarse, record.fine):
        assert stage.layers[-1].layer == FUSION
        assert stage.passes > 0
    first = bundle.graph_path(2, "image_encoder").read_bytes()
    model = onnx.load_from_string(first)
    chosen = {each.layer for each in record.fine.layers if each.quantized} - {FUSION}
    named = {
        node.output[0].removeprefix("network.").removesuffix(".weight")
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.output[0].endswith(".weight")
    }
    assert named == chosen


@pytest.mark.slow  # exports a bundle and calibrates it
@pytest.mark.parametrize("runner", ["openvino", "onnxruntime"])
def test_a_bundle_runs_as_it_was_exported(bundle, case, runner):
    read = read_case(case)
    with Segmenter.open(bundle, runner=runner, precision="int8", threads=1) as segmenter:
        result = segmenter.segment(read.volume, parse_prompts(PROMPTS))
    assert result.report.precision == "int8"
    assert result.labels_dhw.shape == (8, 16, 16)
    with raises(InputError, "precision-unsupported"):
        Segmenter.open(bundle, runner=runner, precision="fp32")


@pytest.mark.slow  # exports a bundle and calibrates it
@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("graph", ["image_encoder", "query_decoder"])
def test_layers_of_a_bundle_are_compared(bundle, graph, kind):
    """With those of the graph that isn't quantized."""
    checkpoints = [tiny_checkpoint(stage) for stage in (1, 2)]
    reference = TorchReference(bundle, *checkpoints)
    found = compare_layers(bundle, 2, graph, reference, Candidate(kind, "int8"), allowed=0.25)
    assert found.output_error < 0.25
    assert found.layers


@pytest.mark.parametrize("runner", ["openvino", "onnxruntime"])
def test_floats_are_not_run_in_eight_bits(tiny_bundle, runner):
    with raises(InputError, "precision-not-exported"):
        Segmenter.open(tiny_bundle, runner=runner, precision="int8")


@pytest.mark.slow  # exports a bundle and calibrates it
def test_winograd_is_refused_where_convolutions_are_integers(bundle):
    with raises(InputError, "convolution-unsupported"):
        Segmenter.open(bundle, runner="openvino", convolution="winograd")


def test_cases_are_asked_for_where_they_count(tmp_path):
    with raises(InputError, "calibration-missing"):
        export_tiny_bundle(tmp_path / "a", precision="int8")
    with raises(InputError, "calibration-not-needed"):
        export_tiny_bundle(tmp_path / "b", precision="bf16", calibrate=tmp_path)
