"""OpenVINO on the CPU."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.choices import (
    QUANTIZED_PRECISIONS,
    Convolution,
    ConvolutionChoice,
    Precision,
    RunnerKind,
)
from medals_rt.common.errors import InputError, MissingFileError, RunnerError
from medals_rt.common.heap import trim_heap
from medals_rt.common.optional_deps import import_optional, is_installed
from medals_rt.common.typing import Array, HostArray
from medals_rt.runners.base import (
    Device,
    OpenRequest,
    Runner,
    RunnerSpec,
    TextGraph,
    check_feeds,
    check_quantized,
    not_quantized,
    thread_limit,
)
from medals_rt.runners.openvino_cache import compiled_file, keep_compiled, open_kept
from medals_rt.runners.openvino_compiled import CompiledModel
from medals_rt.runners.openvino_graphs import arrange, import_openvino, join_graphs, shared_core
from medals_rt.runners.winograd.choice import NOTHING, WHEREVER_POSSIBLE, ConvolutionRule, rule_here
from medals_rt.runners.winograd.cut import Cut, from_bytes, to_bytes
from medals_rt.runners.winograd.machine_code import Storage
from medals_rt.runners.winograd.partition import partition
from medals_rt.runners.winograd.split_model import SplitModel

# Part of a compiled graph's key: to be raised when graphs are joined, arranged or kept differently.
_JOINED_BY = 8

HINTS: Final[dict[Precision, str]] = {"fp32": "f32", "bf16": "bf16"}


class OpenVINORunner(Runner):
    """One ONNX graph, or several joined into one, compiled by OpenVINO for the CPU; see `Runner`.

    Arrays are NumPy's. Each run is a request of its own, so that the arrays which it returns are
    the caller's own, and the library keeps none that it was given.

    Of several graphs, an input of a later one that has the name of an earlier one's output is fed
    by it, inputs of one name are one, and what no later graph reads is returned. The library then
    optimizes across them: what one hands to the next stays in the processor's own layout and
    precision. `prompt_features` of `adapted_queries` made before is looked up by the input
    `prompt_index` (see `openvino_graphs.PROMPT_INDEX`).

    Joined graphs are arranged for speed (`openvino_graphs.arrange`), and take and return what one
    chain of graphs hands to the next (`HANDED_OVER` there) as `(1, H, W, D, C)`, neither converted
    nor transposed: float32, or in bf16, whose bits are NumPy's uint16.

    The compiled form is kept in the user's cache folder under the request's `cache_key`.
    """

    kind: RunnerKind = "openvino"
    device: Device = "cpu"

    def __init__(self, request: OpenRequest) -> None:
        openvino = import_openvino()
        for path in request.graph_paths:
            if not path.is_file():
                raise MissingFileError(f"there is no graph {path}", code="graph-missing")
        self.name = request.name
        self.version: str = openvino.__version__.partition("-")[0]
        core = shared_core()
        processor = core.get_property("CPU", "FULL_DEVICE_NAME")
        graphs = request.graph_precision
        quantized = graphs is not None and graphs in QUANTIZED_PRECISIONS
        if graphs is not None and quantized:
            request = _as_quantized(request, graphs)
        self.precision = _precision(core, request.precision)
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        limit = thread_limit(request.threads)
        if limit:
            config["INFERENCE_NUM_THREADS"] = limit
        key: tuple[object, ...] | None = None
        if request.cache_key is not None:
            key = (
                _JOINED_BY,
                request.cache_key,
                self.version,
                processor,
                self.precision,
                request.joined,
                limit,
            )
        rule = NOTHING
        self.notes: tuple[str, ...] = ()
        if request.joined:
            rule, self.notes = _rule(request.convolution, self.precision, processor)
        try:
            split, joined = self._split(request, config, key, rule)
            if split is None:
                whole = CompiledModel(lambda: self._arranged(request, joined), config, key)
                self.threads = whole.threads
                self._note(whole.notes)
                self._model: CompiledModel | SplitModel = whole
            else:
                self._model = split
        except RuntimeError as error:
            raise RunnerError(
                f"OpenVINO refused {self.name}: {_reason(error)}", code="graph-refused"
            ) from error
        if quantized and request.graph_precision is not None:
            self.precision = request.graph_precision  # what is no 8-bit convolution is as above
        self.inputs = self._model.inputs
        self.outputs = self._model.outputs

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs; see `Runner.run`."""
        check_feeds(self.name, self.inputs, feeds)
        try:
            return self._model.run(feeds)
        except RuntimeError as error:
            raise RunnerError(
                f"OpenVINO failed in {self.name}: {_reason(error)}", code="run-failed"
            ) from error

    def release(self) -> None:
        """Return the memory that the library keeps between runs; the next run takes it again."""
        self._model.release()
        trim_heap()

    def close(self) -> None:
        """Let go of the compiled graph."""
        self._model.close()

    def _kept_cut(self, key: tuple[object, ...]) -> tuple[Path | None, Cut | None]:
        """Return where a cut is kept, and what is there, if it is and can be used."""
        file, notes = compiled_file(key)
        self._note(notes)
        if file is None:
            return None, None
        content, notes = open_kept(file)
        self._note(notes)
        return file, None if content is None else from_bytes(content.tobytes())

    def _note(self, notes: tuple[str, ...]) -> None:
        """Add notes, each once."""
        self.notes = tuple(dict.fromkeys((*self.notes, *notes)))

    def _arranged(self, request: OpenRequest, joined: Any | None) -> Any:
        """Arrange the joined graphs, which are read if they aren't yet."""
        model = _read(request) if joined is None else joined
        return arrange(model, self.precision, chained=request.joined)

    def _split(
        self,
        request: OpenRequest,
        config: dict[str, Any],
        key: tuple[object, ...] | None,
        rule: ConvolutionRule,
    ) -> tuple[SplitModel | None, Any | None]:
        """Cut out of joined graphs what Winograd convolutions are better at, and sweeps.

        Returns
        -------
        SplitModel or None
            None if there is nothing to cut out.
        Any
            The joined graphs then, if they were read to find that.
        """
        if not request.joined:
            return None, None
        storage: Storage = "bfloat16" if self.precision == "bf16" else "float32"
        own = None if key is None else (*key, "cut", rule)
        kept, cut = (None, None) if own is None else self._kept_cut(own)
        models: list[Any] = []
        if cut is None:
            cut, models = partition(_read(request), storage, rule)
            if kept is not None:
                described = to_bytes(cut)
                self._note(keep_compiled(kept, lambda: BytesIO(described)))
        if not cut.blocks and not cut.sweeps:
            return None, next(iter(models), None)

        def make(number: int) -> Any:
            """Return a segment's model; cut again where it was kept in part."""
            if not models:
                models.extend(partition(_read(request), storage, rule)[1])
            return arrange(models[number], self.precision, chained=True)

        compiled = [
            CompiledModel(partial(make, number), config, own and (*own, number))
            if computes
            else None
            for number, computes in enumerate((*cut.computes, *[True] * len(cut.sweeps)))
        ]
        opened = [each for each in compiled if each is not None]
        self.threads = opened[0].threads
        for each in opened:
            self._note(each.notes)
        if cut.blocks:
            self.convolution = "winograd"
        return SplitModel(cut, compiled, storage, self.threads), None


def _read(request: OpenRequest) -> Any:
    """Read and join a request's graphs, unless others came into their place meanwhile.

    What is compiled of them is kept under their hash, for later runs and other processes.
    """
    model = join_graphs(request.graph_paths)
    request.check_files()
    return model


def _rule(
    convolution: ConvolutionChoice, precision: Precision, processor: str
) -> tuple[ConvolutionRule, tuple[str, ...]]:
    """Return which convolutions are Winograd's, and a note if they could be but for a library.

    Raises
    ------
    MissingDependencyError
        If Winograd is asked for and llvmlite is not installed.
    """
    if convolution == "direct":
        return NOTHING, ()
    if convolution == "winograd":
        import_optional("llvmlite", "--convolution winograd")
        return WHEREVER_POSSIBLE, ()
    if not is_installed("llvmlite"):
        return NOTHING, ("convolutions are OpenVINO's own: llvmlite is not installed",)
    return rule_here(precision, processor), ()


def _expected_convolution(
    convolution: ConvolutionChoice, precision: Precision, channels: int, voxels: int
) -> Convolution:
    """Return how joined graphs of a window of so many voxels will be convolved, for plans.

    Raises
    ------
    MissingDependencyError
        If Winograd is asked for and llvmlite is not installed.
    """
    if precision in QUANTIZED_PRECISIONS:
        return "direct"
    processor = shared_core().get_property("CPU", "FULL_DEVICE_NAME")
    rule, _ = _rule(convolution, precision, processor)
    return "winograd" if rule(channels, voxels) else "direct"


def _as_quantized(request: OpenRequest, graphs: Precision) -> OpenRequest:
    """Return the request for graphs with Q/DQ, whose remaining arithmetic is the processor's own.

    Raises
    ------
    InputError
        If another precision than the graphs' is asked for.
    """
    check_quantized(request.precision, graphs, request.name)
    return replace(request, precision=None, convolution="direct")


def _precisions(graphs: Precision) -> tuple[Precision, ...]:
    """Return what this processor computes in, as OpenVINO says; bf16 needs AMX or AVX512-BF16.

    Graphs with Q/DQ are always computed as they say.
    """
    return (graphs,) if graphs in QUANTIZED_PRECISIONS else _native(shared_core())


def _native(core: Any) -> tuple[Precision, ...]:
    native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bf16", "fp32") if native else ("fp32",)


def _precision(core: Any, asked: Precision | None) -> Precision:
    """Choose bf16 where the processor computes in it natively, else fp32, unless one is asked."""
    if asked == "fp16":
        raise InputError(
            "OpenVINO is far slower in fp16 on a CPU; use precision bf16 or fp32",
            code="precision-unsupported",
        )
    if asked in QUANTIZED_PRECISIONS:
        raise not_quantized(asked)
    offered = _native(core)
    if asked is not None and asked not in offered:
        raise RunnerError(
            f"this processor has no {asked} arithmetic (bf16 needs AMX or AVX512-BF16); "
            "use precision fp32",
            code="precision-not-native",
        )
    return asked or offered[0]


def _reason(error: Exception) -> str:
    """Return the last line that says something; the ones before it name source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _open_text_graph(path: Path) -> TextGraph:
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads := thread_limit(None):
        config["INFERENCE_NUM_THREADS"] = threads
    request = shared_core().compile_model(str(path), "CPU", config).create_infer_request()

    def run(token_ids: HostArray, modality: HostArray) -> HostArray:
        request.infer({"token_ids": token_ids, "modality": modality})
        return np.array(request.get_tensor("embeddings").data, np.float32)

    return run


OPENVINO: Final = RunnerSpec(
    kind="openvino",
    device="cpu",
    libraries=("OpenVINO",),
    open_graphs=OpenVINORunner,
    precisions=_precisions,
    auto_reason="OpenVINO is installed, the fastest on a CPU",
    joins_graphs=True,
    quantized=("int8",),
    expected_convolution=_expected_convolution,
    open_text_graph=_open_text_graph,
)
