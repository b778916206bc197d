"""ONNX Runtime, on the CPU and on a GPU.

The part for GPUs gave the processor's labels on an H200; what that run led to mend is untried. The
tests run it on fakes of CuPy and of ONNX Runtime's binding of device memory.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from medals_rt.common.arrays import open_cupy
from medals_rt.common.choices import QUANTIZED_PRECISIONS, Precision, RunnerKind
from medals_rt.common.errors import (
    InputError,
    MissingDependencyError,
    MissingFileError,
    RunnerError,
)
from medals_rt.common.interruption import Background, check_interruption
from medals_rt.common.optional_deps import gpu_extra, import_optional
from medals_rt.common.typing import Array, HostArray
from medals_rt.runners.base import (
    Device,
    OpenRequest,
    Runner,
    RunnerSpec,
    TensorSpec,
    TextGraph,
    check_feeds,
    check_quantized,
    not_quantized,
    precision_of_graphs,
    thread_limit,
)
from medals_rt.runners.cuda import (
    Ordering,
    device_inputs,
    device_outputs,
    load_cuda_libraries,
    runner_stream,
)

_CUDA = "CUDAExecutionProvider"
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}


class ONNXRuntimeRunner(Runner):
    """One ONNX graph in an ONNX Runtime session on the CPU, in fp32; see `Runner`.

    Of graphs with Q/DQ it rounds values to 8 bits and computes with them in fp32: its convolution
    of integers would round what it gives, too.

    Arrays are NumPy's. The library makes new output arrays each run; they are the caller's own.
    """

    kind: RunnerKind = "onnxruntime"
    device: Device = "cpu"
    precision: Precision = "fp32"

    def __init__(self, request: OpenRequest) -> None:
        self._onnxruntime = onnxruntime = import_onnxruntime()
        # The library's call returns when it is done; another thread can stop it meanwhile.
        self._background = Background(1, "onnxruntime")
        (graph_path,) = request.graph_paths
        graphs = request.graph_precision
        if graphs is not None and graphs in QUANTIZED_PRECISIONS:
            check_quantized(request.precision, graphs, request.name)
            self.precision = graphs
        elif request.precision in QUANTIZED_PRECISIONS:
            raise not_quantized(request.precision)
        elif request.precision not in {None, "fp32"}:
            raise InputError(
                f"ONNX Runtime computes in fp32 on a CPU, not {request.precision}; "
                "use precision fp32 or --runner openvino",
                code="precision-unsupported",
            )
        self.name = request.name
        self.version: str = onnxruntime.__version__
        self.threads = thread_limit(request.threads)
        self.notes: tuple[str, ...] = ()
        self._session = _open_session(
            onnxruntime,
            graph_path,
            _cpu_options(onnxruntime, self.threads),
            ["CPUExecutionProvider"],
            self.name,
        )
        self.inputs = _specs(self._session.get_inputs())
        self.outputs = _specs(self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs; see `Runner.run`."""
        check_feeds(self.name, self.inputs, feeds)
        names = [spec.name for spec in self.outputs]
        contiguous = {key: np.ascontiguousarray(value) for key, value in feeds.items()}
        options = self._onnxruntime.RunOptions()

        def compute() -> Sequence[Any]:
            try:
                found: Sequence[Any] = self._session.run(names, contiguous, options)
            except Exception as error:  # the library's errors share no base class of their own
                raise RunnerError(
                    f"ONNX Runtime failed in {self.name}: {error}", code="run-failed"
                ) from error
            return found

        cancel = partial(setattr, options, "terminate", True)
        (results,) = self._background.run([compute], cancel)
        return dict(zip(names, results, strict=True))

    def close(self) -> None:
        """Let go of the session."""
        self._background.close()
        self._session = None


class ONNXRuntimeCUDARunner(Runner):
    """One ONNX graph in an ONNX Runtime session on the current GPU; see `Runner`.

    Arrays are CuPy's and are bound by their addresses: nothing is copied but a view that is not
    contiguous, and that on the GPU. Outputs are new arrays from CuPy's pool that belong to the
    caller. Work is queued on the stream that runners share and ordered by events against the
    caller's current stream; `run` returns when the GPU is done. It could return earlier (the
    library's `disable_synchronize_execution_providers`), but then page-locked buffers pile up until
    the session is closed, and are freed in a callback in which CUDA forbids that: seen on an H200
    with ONNX Runtime 1.31, the process ends there.

    The graph decides the arithmetic: fp16 where its tensors are, else fp32 without TF32.
    """

    kind: RunnerKind = "onnxruntime-cuda"
    device: Device = "cuda"
    threads = 0

    def __init__(self, request: OpenRequest) -> None:
        onnxruntime = import_onnxruntime()
        if _CUDA not in onnxruntime.get_available_providers():
            raise MissingDependencyError(
                f"this ONNX Runtime ({onnxruntime.__version__}) is one without CUDA: "
                f"pip uninstall onnxruntime, then pip install 'medals-rt[{gpu_extra()}]'",
                code="onnxruntime-without-cuda",
            )
        self._cupy = open_cupy("a runner on a GPU")
        _preload(onnxruntime)
        self._device = int(self._cupy.cuda.Device().id)
        self._ordering = Ordering(self._cupy, runner_stream(self._cupy))
        (graph_path,) = request.graph_paths
        self.name = request.name
        self.version: str = onnxruntime.__version__
        self.notes: tuple[str, ...] = ()
        provider = {
            "device_id": str(self._device),
            "user_compute_stream": str(runner_stream(self._cupy).ptr),
            # Without it no convolution runs on the matrix units, not in 16 bits either.
            "use_tf32": "0" if request.graph_precision in {None, "fp32"} else "1",
            "prefer_nhwc": "0",  # its kernels for channels last are for 2D
            "arena_extend_strategy": "kSameAsRequested",
        }
        self._session = _open_session(
            onnxruntime, graph_path, onnxruntime.SessionOptions(), [(_CUDA, provider)], self.name
        )
        if self._session.get_providers()[:1] != [_CUDA]:
            raise RunnerError(
                f"ONNX Runtime did not take {self.name} to the GPU (its CUDA and cuDNN libraries "
                "are missing or of another version); it would have run on the CPU",
                code="cuda-not-used",
            )
        self.inputs = _specs(self._session.get_inputs())
        self.outputs = _specs(self._session.get_outputs())
        self.precision: Precision = request.graph_precision or _graph_precision(
            (*self.inputs, *self.outputs)
        )
        if request.precision not in {None, self.precision}:
            raise InputError(
                f"{self.name} is a graph in {self.precision}, and ONNX Runtime computes in that on "
                f"a GPU, not in {request.precision}; export the bundle in {request.precision}",
                code="precision-unsupported",
            )
        self._run_options = onnxruntime.RunOptions()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Queue the computation of all outputs; see `Runner.run`."""
        check_interruption()
        free = check_feeds(self.name, self.inputs, feeds)
        arrays = device_inputs(self._cupy, self.name, feeds)
        results = device_outputs(self._cupy, self.name, self.outputs, free, None)
        binding = self._session.io_binding()
        for key, array in arrays.items():
            binding.bind_input(key, *self._place(array))
        for key, array in results.items():
            binding.bind_output(key, *self._place(array))
        try:
            with self._ordering.after_and_before():
                self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:  # the library's errors share no base class of their own
            raise RunnerError(
                f"ONNX Runtime failed in {self.name}: {error}", code="run-failed"
            ) from error
        return results

    def close(self) -> None:
        """Wait for what was queued, and let go of the session."""
        if self._session is not None:
            self._ordering.wait()
        self._session = None

    def _place(self, array: Any) -> tuple[str, int, np.dtype[Any], tuple[int, ...], int]:
        """Return device, its number, dtype, shape and address: where the library finds it."""
        return (
            "cuda",
            self._device,
            np.dtype(str(array.dtype)),
            tuple(array.shape),
            int(array.data.ptr),
        )


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, or say what installs it."""
    return import_optional("ONNX Runtime", "the runner onnxruntime")


def _preload(onnxruntime: Any) -> None:
    """Have the library load what it needs of CUDA, from wherever it lies.

    What is printed of what is missing is dropped: a session that needs it says so itself.
    """
    load_cuda_libraries()
    preload = getattr(onnxruntime, "preload_dlls", None)  # from 1.21 on
    if preload is not None:
        with redirect_stdout(io.StringIO()):
            preload()


def _cpu_options(onnxruntime: Any, threads: int) -> Any:
    """Return the session options of a graph on a processor.

    Each graph has threads of its own, which would wait busily while the next graph computes.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _open_session(
    onnxruntime: Any, graph_path: Path, options: Any, providers: Sequence[Any], name: str
) -> Any:
    if not graph_path.is_file():
        raise MissingFileError(f"there is no graph {graph_path}", code="graph-missing")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(graph_path), options, providers=list(providers))
    except Exception as error:  # the library's errors share no base class of their own
        raise RunnerError(f"ONNX Runtime refused {name}: {error}", code="graph-refused") from error


def _graph_precision(specs: Sequence[TensorSpec]) -> Precision:
    """Return a graph's precision: each one in fp16 has inputs or outputs of that type."""
    return "fp16" if any(spec.dtype == "float16" for spec in specs) else "fp32"


def _specs(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(value.name, tuple(value.shape), _TYPES.get(value.type, value.type))
        for value in values
    )


def _in_fp32(graphs: Precision) -> tuple[Precision, ...]:
    return (graphs,) if graphs in QUANTIZED_PRECISIONS else ("fp32",)


def _open_text_graph(path: Path) -> TextGraph:
    import onnxruntime

    options = _cpu_options(onnxruntime, thread_limit(None))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(token_ids: HostArray, modality: HostArray) -> HostArray:
        (embeddings,) = session.run(["embeddings"], {"token_ids": token_ids, "modality": modality})
        return np.asarray(embeddings, np.float32)

    return run


ONNXRUNTIME: Final = RunnerSpec(
    kind="onnxruntime",
    device="cpu",
    libraries=("ONNX Runtime",),
    open_graphs=ONNXRuntimeRunner,
    precisions=_in_fp32,
    auto_reason="OpenVINO is not installed, ONNX Runtime is",
    # it has no bf16 convolution on a CPU
    graph_precisions=("fp32", "fp16", *QUANTIZED_PRECISIONS),
    open_text_graph=_open_text_graph,
)
ONNXRUNTIME_CUDA: Final = RunnerSpec(
    kind="onnxruntime-cuda",
    device="cuda",
    libraries=("ONNX Runtime", "CuPy"),
    distributions=("onnxruntime-gpu",),
    open_graphs=ONNXRuntimeCUDARunner,
    precisions=precision_of_graphs,
    auto_reason="ONNX Runtime runs on it",
)
