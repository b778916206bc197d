"""Graphs on a GPU without TensorRT: cuDNN convolves, CuPy does the rest.

Convolutions run with the channels last, the layout that a GPU's matrix units want; norms and
activations are two sweeps of own kernels. All of it is queued on the caller's stream, and nothing
waits. Not yet run on a GPU: `auto` does not take it, and each run says so.
"""

from collections.abc import Mapping
from typing import Any, Final

from medals_rt.common.arrays import open_cupy
from medals_rt.common.choices import Precision, RunnerKind
from medals_rt.common.errors import InputError, RunnerError
from medals_rt.common.interruption import check_interruption
from medals_rt.common.optional_deps import import_optional
from medals_rt.common.typing import Array
from medals_rt.runners.base import (
    Device,
    OpenRequest,
    Runner,
    RunnerSpec,
    check_feeds,
    precision_of_graphs,
)
from medals_rt.runners.cuda import device_inputs, load_cuda_libraries
from medals_rt.runners.cudnn.convolution import Convolutions
from medals_rt.runners.cudnn.graph import Graph, read_graph
from medals_rt.runners.cudnn.kernels import Kernels
from medals_rt.runners.cudnn.program import Program

_READ_BYTES: Final = 16
"""What a thread reads at once."""

UNTRIED: Final = (
    "the runner cudnn has not been tried on a GPU: compare its labels with those of another runner"
)


class CuDNNRunner(Runner):
    """One fp16 graph; see `Runner`.

    Arrays are CuPy's. Volumes that come back are stored with the channels last, and are taken so
    by the next graph without a copy.
    """

    kind: RunnerKind = "cudnn"
    device: Device = "cuda"
    precision: Precision = "fp16"
    threads = 0

    def __init__(self, request: OpenRequest, graph: Graph) -> None:
        if request.precision not in {None, "fp16"}:
            raise InputError(
                f"{request.name} is a graph in fp16, and is computed in that on a GPU, not in "
                f"{request.precision}; export the bundle in {request.precision}",
                code="precision-unsupported",
            )
        self._cupy = open_cupy("a runner on a GPU")
        load_cuda_libraries()
        cudnn = import_optional("cuDNN frontend", "the runner cudnn")
        self.name = request.name
        self.version: str = cudnn.backend_version_string()
        self.notes: tuple[str, ...] = (UNTRIED,)
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._operations: GpuOperations | None = GpuOperations(self._cupy, cudnn)
        self._program = Program(graph, self._operations)
        self._cupy.cuda.get_current_stream().synchronize()  # runs may be on another stream

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Queue the computation of all outputs; see `Runner.run`."""
        check_interruption()
        check_feeds(self.name, self.inputs, feeds)
        if self._operations is None:
            raise RunnerError(f"{self.name} is closed", code="runner-closed")
        on_device: Mapping[str, Any] = device_inputs(self._cupy, self.name, feeds, views=True)
        given = {
            name: array if array.data.ptr % _READ_BYTES == 0 else array.copy()
            for name, array in on_device.items()
        }
        self._operations.convolutions.use_current_stream()
        try:
            return self._program.run(given)
        except RunnerError:
            raise
        except Exception as error:  # cuDNN's and CuPy's errors share no base class
            raise RunnerError(f"cuDNN failed in {self.name}: {error}", code="run-failed") from error

    def close(self) -> None:
        """Wait for what was queued, and free what cuDNN holds."""
        if self._operations is not None:
            self._cupy.cuda.Device().synchronize()
            self._operations.convolutions.close()
        self._operations = None


class GpuOperations:
    """The operations of a program, on CuPy's current device and stream."""

    def __init__(self, cupy: Any, cudnn: Any) -> None:
        self.xp = cupy
        self.convolutions = Convolutions(cupy, cudnn)
        self.convolve, self.upsample = self.convolutions.convolve, self.convolutions.upsample
        kernels = Kernels(cupy)
        self.norm_activate, self.join, self.add = kernels.norm_activate, kernels.join, kernels.add
        self.pool, self.to_probability = kernels.pool, kernels.to_probability

    def erf(self, values: Any) -> Any:
        """Return the error function."""
        from cupyx.scipy.special import erf

        return erf(values)


def open_graphs(request: OpenRequest) -> Runner:
    """Open one graph."""
    (path,) = request.graph_paths
    return CuDNNRunner(request, read_graph(path))


CUDNN: Final = RunnerSpec(
    kind="cudnn",
    device="cuda",
    libraries=("cuDNN frontend", "ONNX", "CuPy"),
    open_graphs=open_graphs,
    precisions=precision_of_graphs,
    auto_reason="",  # until it has run on a GPU
    graph_precisions=("fp16",),
)
