"""Convolutions of cuDNN on volumes with the channels last: a plan for each shape, made once."""

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

from medals_rt.common.errors import RunnerError

Kind: TypeAlias = Literal["convolve", "upsample"]
Sizes: TypeAlias = tuple[int, ...]

_MODES: Final = ("A", "FALLBACK")
_MOST_WORKSPACE_BYTES: Final = 2 << 30
_MOST_TRIED: Final = 16


class Convolutions:
    """Convolutions in fp16, summed in fp32.

    The first plan of cuDNN's own order that it can build is taken, so that a case has the same
    labels in every process; plans whose sums depend on the order of threads are left out.

    Parameters
    ----------
    cupy, cudnn
        The libraries; `cudnn` is the package ``nvidia-cudnn-frontend``.
    """

    def __init__(self, cupy: Any, cudnn: Any) -> None:
        self._cupy = cupy
        self._cudnn = cudnn
        self._handle = cudnn.create_handle()
        self._plans: dict[tuple[Any, ...], Plan] = {}

    def use_current_stream(self) -> None:
        """Have what follows run on CuPy's current stream."""
        stream = self._cupy.cuda.get_current_stream()
        self._cudnn.set_stream(handle=self._handle, stream=stream.ptr)

    def convolve(self, volume: Any, weights: Any, stride: int) -> Any:
        """Convolve by 3x3x3, with one voxel of zeros around the volume.

        Parameters
        ----------
        volume
            `(H, W, D, C)` float16, contiguous.
        weights
            `(K, 3, 3, 3, C)` float16, contiguous.
        stride
            Along each axis.

        Returns
        -------
        array
            `(h, w, d, K)` float16, new.
        """
        return self._run(
            self.plan("convolve", volume.shape, weights.shape, stride), volume, weights
        )

    def upsample(self, volume: Any, weights: Any) -> Any:
        """Make eight voxels of each, by the transposed convolution of 2x2x2 with stride 2.

        Parameters
        ----------
        volume
            `(H, W, D, C)` float16, contiguous.
        weights
            `(C, 2, 2, 2, K)` float16, contiguous.

        Returns
        -------
        array
            `(2H, 2W, 2D, K)` float16, new.
        """
        plan = self.plan("upsample", volume.shape, weights.shape, 2)
        return self._run(plan, volume, weights)

    def _run(self, plan: "Plan", volume: Any, weights: Any) -> Any:
        result = self._cupy.empty(plan.shape, self._cupy.float16)
        workspace = self._cupy.empty(plan.workspace_bytes, self._cupy.uint8)
        plan.execute(volume.data.ptr, weights.data.ptr, result.data.ptr, workspace.data.ptr)
        return result

    def plan(self, kind: Kind, volume: Sizes, weights: Sizes, stride: int) -> "Plan":
        """Return the plan for arrays of these shapes; it is made when it is asked for first."""
        key = (kind, volume, weights, stride)
        if key not in self._plans:
            self._plans[key] = Plan(self._cudnn, self._handle, *key)
        return self._plans[key]

    def close(self) -> None:
        """Free plans and the handle."""
        self._plans.clear()
        if self._handle is not None:
            self._cudnn.destroy_handle(self._handle)
            self._handle = None


class Plan:
    """How cuDNN convolves one shape.

    Parameters
    ----------
    cudnn, handle
        The library.
    kind, volume, weights, stride
        Shapes as `Convolutions` takes them.
    modes
        Names of its heuristics, in the order in which their plans are tried.
    """

    def __init__(
        self,
        cudnn: Any,
        handle: Any,
        kind: Kind,
        volume: Sizes,
        weights: Sizes,
        stride: int,
        *,
        modes: Sequence[str] = _MODES,
    ) -> None:
        self.graph = cudnn.pygraph(
            handle=handle,
            io_data_type=cudnn.data_type.HALF,
            intermediate_data_type=cudnn.data_type.FLOAT,
            compute_data_type=cudnn.data_type.FLOAT,
        )
        self._handle = handle
        describe = _upsampling if kind == "upsample" else _convolution
        self.tensors, self.shape = describe(cudnn, self.graph, volume, weights, stride)
        try:
            self.graph.validate()
            self.graph.build_operation_graph()
            self.graph.create_execution_plans([getattr(cudnn.heur_mode, mode) for mode in modes])
            self.graph.deselect_numeric_notes([cudnn.numerical_note.NONDETERMINISTIC])
            self.graph.check_support()
        except Exception as error:  # the library's errors share no base class of their own
            raise _refused(volume, weights, error) from error
        self._index = self._first_built(volume, weights)
        self.workspace_bytes = max(1, self.graph.get_workspace_size_plan_at_index(self._index))

    def _first_built(self, volume: Sizes, weights: Sizes) -> int:
        last: Exception | None = None
        for index in range(min(self.graph.get_execution_plan_count(), _MOST_TRIED)):
            try:
                self.graph.build_plan_at_index(index)
            except Exception as error:  # noqa: BLE001 - what a GPU can't run fails here; see below
                last = error
                continue
            if self.graph.get_workspace_size_plan_at_index(index) <= _MOST_WORKSPACE_BYTES:
                return index
        raise _refused(volume, weights, last)

    def execute(self, volume: int, weights: int, result: int, workspace: int) -> None:
        """Queue the convolution of arrays at these addresses."""
        places = dict(zip(self.tensors, (volume, weights, result), strict=True))
        self.graph.execute_plan_at_index(places, workspace, self._index, handle=self._handle)


def _convolution(
    cudnn: Any, graph: Any, volume: Sizes, weights: Sizes, stride: int
) -> tuple[tuple[Any, Any, Any], Sizes]:
    """Describe a convolution: volume, weights and result, and the shape of the result."""
    *sizes, channels = volume
    outputs, *kernel, _ = weights
    image = _tensor(cudnn, graph, "volume", (1, channels, *sizes))
    weight = _tensor(cudnn, graph, "weights", (outputs, channels, *kernel))
    result = graph.conv_fprop(
        image=image,
        weight=weight,
        padding=[1] * 3,
        stride=[stride] * 3,
        dilation=[1] * 3,
        compute_data_type=cudnn.data_type.FLOAT,
    )
    shape = (*((size - 1) // stride + 1 for size in sizes), outputs)
    return (image, weight, _output(cudnn, result, shape)), shape


def _upsampling(
    cudnn: Any, graph: Any, volume: Sizes, weights: Sizes, stride: int
) -> tuple[tuple[Any, Any, Any], Sizes]:
    """Describe a transposed convolution: it is how a gradient goes back through a convolution."""
    *sizes, channels = volume
    _, *kernel, outputs = weights
    loss = _tensor(cudnn, graph, "volume", (1, channels, *sizes))
    weight = _tensor(cudnn, graph, "weights", (channels, outputs, *kernel))
    result = graph.conv_dgrad(
        loss=loss,
        filter=weight,
        padding=[0] * 3,
        stride=[stride] * 3,
        dilation=[1] * 3,
        compute_data_type=cudnn.data_type.FLOAT,
    )
    shape = (*(size * stride for size in sizes), outputs)
    return (loss, weight, _output(cudnn, result, shape)), shape


def _output(cudnn: Any, result: Any, shape: Sizes) -> Any:
    *sizes, channels = shape
    dims = (1, channels, *sizes)
    result.set_output(True).set_data_type(cudnn.data_type.HALF)
    return result.set_dim(list(dims)).set_stride(_strides(dims))


def _tensor(cudnn: Any, graph: Any, name: str, dims: Sizes) -> Any:
    half = cudnn.data_type.HALF
    return graph.tensor(name=name, dim=list(dims), stride=_strides(dims), data_type=half)


def _strides(dims: Sizes) -> list[int]:
    """Return the strides of an array of axes (N, C, H, W, D) that is stored (N, H, W, D, C)."""
    _, channels, height, width, depth = dims
    row = depth * channels
    return [height * width * row, 1, width * row, row, channels]


def _refused(volume: Sizes, weights: Sizes, error: Exception | None) -> RunnerError:
    return RunnerError(
        f"cuDNN has no convolution of {volume} with {weights}: {error}",
        code="convolution-refused",
    )
