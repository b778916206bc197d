"""A graph that differs, narrowed to the layer at which it begins to.

What lies between the layers is compared in the order in which it is computed: the reference's graph
in ONNX Runtime in fp32, the bundle's as the candidate runs it, both on the inputs that `graphs`
compares them with. Tensors are made outputs some at a time, as many as fit the memory; N is fixed.

A library that is asked for a tensor can't fuse it away, so what goes wrong only in a fusion may
vanish while it is looked at: then no layer differs, and `LayerComparison` says what the graph's
outputs came to meanwhile.

Polygraphy has the parts of this (`modify_outputs`, `Comparator`), but with runners of its own: what
is wrong would have to be wrong in those, too, and OpenVINO has none; and it keeps all tensors of
both runs at once, which for a window of 192 x 192 x 192 is some 60 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import GRAPH_NAMES, MANIFEST_FILE, GraphName, ParityRecord
from medals_rt.common.arrays import to_host
from medals_rt.common.choices import (
    QUANTIZED_PRECISIONS,
    STAGE_NAMES,
    TENSORRT_LABELS,
    Precision,
    StageNumber,
)
from medals_rt.common.errors import MedalsError, RunnerError
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.plugins import load_plugin
from medals_rt.common.progress import Progress
from medals_rt.inference.network import arithmetic_of
from medals_rt.runners.base import Runner
from medals_rt.runners.registry import runner_spec
from medals_rt.runners.selection import open_runner
from medals_rt.tools.verify.graphs import (
    PROMPTS_TRIED,
    Tensors,
    inputs_of_graph,
    run_graph,
    tell,
)
from medals_rt.tools.verify.measures import relative_error
from medals_rt.tools.verify.references import Candidate, Reference, itself
from medals_rt.tools.verify.verify import Outcome, graph_passes

_MOST_BYTES: Final = 1 << 29
"""Of tensors that are looked at together, as float32."""
_FLOATS: Final = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")

OpenGraph = Callable[[Path], Runner]


@dataclass(frozen=True)
class Layer:
    """What a node of the graph computes.

    Attributes
    ----------
    tensor, node, operator
        Names in the ONNX file, and what kind of node it is.
    shape
        Of the tensor.
    error
        Relative error, `measures.relative_error`.
    inherited
        The largest error of what the node reads.
    """

    tensor: str
    node: str
    operator: str
    shape: tuple[int, ...]
    error: float
    inherited: float


@dataclass(frozen=True)
class LayerComparison:
    """A graph, layer by layer.

    Attributes
    ----------
    stage, graph, candidate
        Of what.
    allowed
        The largest relative error that passes.
    layers
        In the order in which they are computed.
    output_error
        Of the graph's outputs while layers were looked at.
    unpaired
        Tensors that only one of the two graphs has.
    fault
        Why they can't be compared; None where they were.
    """

    stage: StageNumber
    graph: GraphName
    candidate: Candidate
    allowed: float
    layers: tuple[Layer, ...]
    output_error: float
    unpaired: int
    fault: str | None = None

    @property
    def first(self) -> Layer | None:
        """The first layer whose error does not pass; None where all do."""
        return next((each for each in self.layers if each.error > self.allowed), None)

    @property
    def sources(self) -> tuple[Layer, ...]:
        """The layers that add most to what they inherit, most first."""

        def growth(each: Layer) -> float:
            return each.error / max(each.inherited, 1e-7)

        return tuple(sorted(self.layers, key=growth, reverse=True))


@dataclass(frozen=True)
class _Node:
    """A node of a graph, as far as it is compared."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    tensor: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return 4 * int(np.prod(self.shape))


def compare_failing_graphs(
    bundle: Bundle,
    reference: Reference,
    candidates: Sequence[Candidate],
    outcome: Outcome,
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[LayerComparison, ...]:
    """Compare the layers of each graph that differs too much, for each candidate."""
    compared = []
    for record in outcome.records:
        candidate = next(each for each in candidates if _is_of(record, each))
        for parity in record.graphs:
            graph = next((name for name in GRAPH_NAMES if name == parity.graph), None)
            if graph is None or graph_passes(parity, record.relative_error):
                continue  # whole windows are no graph
            stage = next(number for number, name in STAGE_NAMES.items() if name == record.part)
            try:
                found = compare_layers(
                    bundle,
                    stage,
                    graph,
                    reference,
                    candidate,
                    allowed=record.relative_error,
                    threads=threads,
                    progress=progress,
                )
            except MedalsError as error:
                found = LayerComparison(
                    stage, graph, candidate, record.relative_error, (), 0.0, 0, str(error)
                )
            compared.append(found)
    return tuple(compared)


def compare_layers(
    bundle: Bundle,
    stage: StageNumber,
    graph: GraphName,
    reference: Reference,
    candidate: Candidate,
    *,
    allowed: float,
    prompts_tried: int = PROMPTS_TRIED,
    threads: int | None = None,
    most_bytes: int = _MOST_BYTES,
    progress: Progress | None = None,
) -> LayerComparison:
    """Compare what lies between the layers of a graph.

    Parameters
    ----------
    bundle, stage, graph
        The graph.
    reference, candidate
        What is right, and what computes.
    allowed
        The largest relative error that passes.
    prompts_tried
        N.
    most_bytes
        Of tensors that are made outputs together.
    progress
        Called with the graph, the layers done and the layers in all.

    Raises
    ------
    MissingDependencyError
        If ONNX is not installed, or for engines what builds them.
    MedalsError
        If the graph can't be run with its layers as outputs.
    """
    feeds = inputs_of_graph(bundle, stage, graph, reference, prompts_tried)
    with TemporaryDirectory(prefix="medals-rt-layers-") as temporary:
        folder = Path(temporary)
        right = _Observed(reference.graph_file(stage, graph, folder), feeds)
        ours = _Observed(bundle.graph_path(stage, graph), feeds)
        one = itself()
        found, output_error = _errors(
            right,
            ours,
            feeds,
            lambda path: _open(bundle, stage, graph, one, path, _unquantized(bundle), threads),
            lambda path: _open(bundle, stage, graph, candidate, path, bundle.precision, threads),
            folder,
            most_bytes,
            lambda done, total: tell(progress, graph, done, total),
        )
    names = {each.tensor for each in right.nodes} ^ {each.tensor for each in ours.nodes}
    return LayerComparison(
        stage, graph, candidate, allowed, _with_inherited(right, found), output_error, len(names)
    )


def _is_of(record: ParityRecord, candidate: Candidate) -> bool:
    return (record.runner, record.precision) == (candidate.kind, candidate.precision)


class _Observed:
    """An ONNX file whose inner tensors can be made outputs."""

    def __init__(self, path: Path, feeds: Tensors) -> None:
        onnx = import_optional("ONNX", "comparing layers")
        self._onnx = onnx
        model = onnx.load(path)
        for value in model.graph.input:
            for axis, size in zip(
                value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=True
            ):
                if axis.dim_param:
                    axis.dim_value = size
        del model.graph.value_info[:]
        for value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        self._model = model
        self._values = {each.name: each for each in (*model.graph.value_info, *model.graph.output)}
        self.outputs = tuple(each.name for each in model.graph.output)
        self.nodes = tuple(self._find_nodes())

    def _find_nodes(self) -> Iterator[_Node]:
        """Go through what depends on the inputs and is of a float type and a known shape."""
        graph = self._model.graph
        depends = {each.name for each in graph.input}
        depends -= {each.name for each in graph.initializer}
        floats = {getattr(self._onnx.TensorProto, name) for name in _FLOATS}
        for node in graph.node:
            if not depends & {*node.input}:
                continue
            depends |= {*node.output}
            value = self._values.get(node.output[0])
            if value is None or value.type.tensor_type.elem_type not in floats:
                continue
            axes = value.type.tensor_type.shape.dim
            if not value.type.tensor_type.HasField("shape") or not all(
                axis.HasField("dim_value") for axis in axes
            ):
                continue
            shape = tuple(int(axis.dim_value) for axis in axes)
            yield _Node(node.name, node.op_type, tuple(node.input), value.name, shape)

    def write(self, path: Path, tensors: Sequence[str]) -> None:
        """Write a copy that gives these tensors too."""
        model = self._onnx.ModelProto()
        model.CopyFrom(self._model)
        model.graph.output.extend(
            self._values[name] for name in tensors if name not in self.outputs
        )
        path.write_bytes(model.SerializeToString())


def _errors(
    right: _Observed,
    ours: _Observed,
    feeds: Tensors,
    open_right: OpenGraph,
    open_ours: OpenGraph,
    folder: Path,
    most_bytes: int,
    advance: Callable[[int, int], None],
) -> tuple[dict[str, float], float]:
    """Return the error of each tensor that both graphs have, and the largest of their outputs."""
    both = {each.tensor for each in ours.nodes}
    nodes = [each for each in right.nodes if each.tensor in both]
    errors: dict[str, float] = {}
    worst = 0.0
    for group in _groups(nodes, most_bytes):
        advance(len(errors), len(nodes))
        names = [each.tensor for each in group]
        outputs = []
        for what, graph, open_graph in (("right", right, open_right), ("ours", ours, open_ours)):
            path = folder / what / "graph.onnx"
            path.parent.mkdir(exist_ok=True)
            graph.write(path, names)
            with closing(open_graph(path)) as runner:
                outputs.append(run_graph(runner, feeds))
        expected, found = outputs
        for name in names:
            errors[name] = _error(found[name], expected[name])
        worst = max(worst, *(_error(found[name], expected[name]) for name in right.outputs))
    advance(len(nodes), len(nodes))
    return errors, worst


def _groups(nodes: Sequence[_Node], most_bytes: int) -> Iterator[list[_Node]]:
    """Take nodes in a row whose tensors fit together; one at least."""
    group: list[_Node] = []
    held = 0
    for each in nodes:
        if group and held + each.bytes > most_bytes:
            yield group
            group, held = [], 0
        group.append(each)
        held += each.bytes
    if group:
        yield group


def _error(found: Any, expected: Any) -> float:
    try:
        return relative_error(to_host(found), to_host(expected))
    except RunnerError:  # of another shape
        return float("inf")


def _with_inherited(right: _Observed, errors: dict[str, float]) -> tuple[Layer, ...]:
    """Put errors beside the largest of what each node reads, through what isn't compared."""
    reached: dict[str, float] = {}
    layers = []
    for each in right.nodes:
        inherited = max((reached.get(name, 0.0) for name in each.inputs), default=0.0)
        reached[each.tensor] = errors.get(each.tensor, inherited)
        if each.tensor in errors:
            layers.append(
                Layer(
                    each.tensor,
                    each.name or each.tensor,
                    each.operator,
                    each.shape,
                    errors[each.tensor],
                    inherited,
                )
            )
    return tuple(layers)


def _open(
    bundle: Bundle,
    stage: StageNumber,
    graph: GraphName,
    candidate: Candidate,
    path: Path,
    precision: Precision,
    threads: int | None,
) -> Runner:
    """Open a copy of a graph as a candidate runs it; for TensorRT an engine is built of it.

    `precision` is what graphs of the copy's bundle are stored in.
    """
    kind = candidate.kind
    computed, stored = arithmetic_of(
        [graph], runner_spec(kind).device, candidate.precision, precision
    )
    if kind in TENSORRT_LABELS:
        build = load_plugin("build-graph", "comparing the layers of an engine")
        (path.parent / MANIFEST_FILE).touch()  # engines lie in bundles
        build(path, path.parent, kind, bundle.precision, stage, graph)
    return open_runner(
        kind,
        path,
        name=f"{graph} of stage {stage}",
        precision=computed,
        graph_precision=stored,
        threads=threads,
    )


def _unquantized(bundle: Bundle) -> Precision:
    """Return what the reference's graphs are stored in: nothing of it is quantized."""
    return "fp32" if bundle.precision in QUANTIZED_PRECISIONS else bundle.precision
