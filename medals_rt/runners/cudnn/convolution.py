"""Convolutions of cuDNN on volumes with the channels last: a plan for each shape, made once."""

from typing import Any, Final

from medals_rt.common.errors import RunnerError

_MODES: Final = ("A", "FALLBACK")
_MOST_WORKSPACE_BYTES: Final = 2 << 30
_KERNEL_EDGE: Final = 3
_MOST_TRIED: Final = 16


class Convolutions:
    """3x3x3 convolutions in fp16, summed in fp32, one voxel of zeros around a volume.

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
        """Convolve.

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
        plan = self.plan(volume.shape, weights.shape, stride)
        result = self._cupy.empty(plan.shape, self._cupy.float16)
        workspace = self._cupy.empty(plan.workspace_bytes, self._cupy.uint8)
        plan.execute(volume.data.ptr, weights.data.ptr, result.data.ptr, workspace.data.ptr)
        return result

    def plan(self, volume: tuple[int, ...], weights: tuple[int, ...], stride: int) -> "Plan":
        """Return the plan for arrays of these shapes; it is made when it is asked for first."""
        key = (volume, weights, stride)
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
    """How cuDNN convolves one shape."""

    def __init__(
        self,
        cudnn: Any,
        handle: Any,
        volume_shape: tuple[int, ...],
        weights_shape: tuple[int, ...],
        stride: int,
    ) -> None:
        *sizes, channels = volume_shape
        outputs = weights_shape[0]
        self.shape = (*((size - 1) // stride + 1 for size in sizes), outputs)
        half, single = cudnn.data_type.HALF, cudnn.data_type.FLOAT
        graph = cudnn.pygraph(
            handle=handle,
            io_data_type=half,
            intermediate_data_type=single,
            compute_data_type=single,
        )
        volume = _tensor(graph, "volume", (1, channels, *sizes), half)
        weights = _tensor(graph, "weights", (outputs, channels, *[_KERNEL_EDGE] * 3), half)
        result = graph.conv_fprop(
            image=volume,
            weight=weights,
            padding=[1, 1, 1],
            stride=[stride] * 3,
            dilation=[1, 1, 1],
            compute_data_type=single,
        )
        dims = (1, outputs, *self.shape[:-1])
        result.set_output(True).set_data_type(half).set_dim(list(dims)).set_stride(_strides(dims))
        self.graph, self._handle = graph, handle
        self._tensors = (volume, weights, result)
        try:
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([getattr(cudnn.heur_mode, mode) for mode in _MODES])
            graph.deselect_numeric_notes([cudnn.numerical_note.NONDETERMINISTIC])
            graph.check_support()
        except Exception as error:  # the library's errors share no base class of their own
            raise _refused(volume_shape, weights_shape, error) from error
        self._index = self._first_built(volume_shape, weights_shape)
        self.workspace_bytes = max(1, graph.get_workspace_size_plan_at_index(self._index))

    def _first_built(self, volume_shape: tuple[int, ...], weights_shape: tuple[int, ...]) -> int:
        last: Exception | None = None
        for index in range(min(self.graph.get_execution_plan_count(), _MOST_TRIED)):
            try:
                self.graph.build_plan_at_index(index)
            except Exception as error:  # noqa: BLE001 - what a GPU can't run fails here; see below
                last = error
                continue
            if self.graph.get_workspace_size_plan_at_index(index) <= _MOST_WORKSPACE_BYTES:
                return index
        raise _refused(volume_shape, weights_shape, last)

    def execute(
        self, volume: int, weights: int, result: int, workspace: int, index: int | None = None
    ) -> None:
        """Queue the convolution of arrays at these addresses, by another plan than its own."""
        places = dict(zip(self._tensors, (volume, weights, result), strict=True))
        taken = self._index if index is None else index
        self.graph.execute_plan_at_index(places, workspace, taken, handle=self._handle)


def _tensor(graph: Any, name: str, dims: tuple[int, ...], dtype: Any) -> Any:
    return graph.tensor(name=name, dim=list(dims), stride=_strides(dims), data_type=dtype)


def _strides(dims: tuple[int, ...]) -> list[int]:
    """Return the strides of an array of axes (N, C, H, W, D) that is stored (N, H, W, D, C)."""
    count, channels, height, width, depth = dims
    del count
    row = depth * channels
    return [height * width * row, 1, width * row, row, channels]


def _refused(
    volume_shape: tuple[int, ...], weights_shape: tuple[int, ...], error: Exception | None
) -> RunnerError:
    return RunnerError(
        f"cuDNN has no convolution of {volume_shape} with {weights_shape}: {error}",
        code="convolution-refused",
    )
