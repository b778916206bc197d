"""TensorRT and TensorRT-RTX as one: the same interface under two names.

Builder (`medals_export.engines`) and runner (`medals_rt.runners.tensorrt`) take a
`TensorRTLibrary` and do not ask which of the two it is, but where this file says that they differ.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from medals_rt.common.choices import TENSORRT_LABELS, TensorRTKind
from medals_rt.common.optional_deps import import_optional, modules_of

# names under which NVIDIA's packages install the module, first found first taken
MODULES: dict[TensorRTKind, tuple[str, ...]] = {
    kind: modules_of(label) for kind, label in TENSORRT_LABELS.items()
}


@dataclass(frozen=True)
class TensorRTLibrary:
    """One of the two, imported.

    Attributes
    ----------
    kind
        The runner's name.
    module
        The module.
    version
        Its exact version: engines and timing caches serve no other.
    log
        Its logger, which keeps what went wrong (`take_errors`).
    """

    kind: TensorRTKind
    module: Any
    version: str
    log: Any

    @property
    def label(self) -> str:
        """How NVIDIA writes it."""
        return TENSORRT_LABELS[self.kind]

    @property
    def compiles_on_first_use(self) -> bool:
        """Whether engines hold portable code, compiled for the GPU when they are first run.

        TensorRT-RTX's do: they are built without a GPU and for several architectures, keep no
        timing cache (its functions do nothing there), and have a cache of compiled kernels.
        """
        return self.kind == "tensorrt-rtx"

    def builds_for(self, architecture: str) -> bool:
        """Whether it makes engines for GPUs of a compute capability, such as "SM90".

        TensorRT-RTX's are for RTX GPUs: those of data centers are not on its list.
        """
        return self.kind == "tensorrt" or hasattr(self.module.ComputeCapability, architecture)

    def take_errors(self) -> str:
        """Return what the library has complained of since it was last asked, in one line."""
        said = "; ".join(dict.fromkeys(" ".join(line.split()) for line in self.log.errors))
        self.log.errors.clear()
        return said or "it gave no reason"


@cache
def open_library(kind: TensorRTKind) -> TensorRTLibrary:
    """Import the library; once, because it knows one logger a process.

    Raises
    ------
    MissingDependencyError
        If it is not installed, or its own libraries are missing.
    """
    module = import_optional(TENSORRT_LABELS[kind], f"the runner {kind}")
    return TensorRTLibrary(kind, module, str(module.__version__), _make_log(module))


def _make_log(module: Any) -> Any:
    """Make a logger of the library's kind that keeps errors in a list and drops the rest."""
    severity = module.ILogger.Severity
    kept = {severity.ERROR, severity.INTERNAL_ERROR}

    class Log(module.ILogger):  # type: ignore[misc]
        """Called by the library, from any of its threads."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Keep what is grave."""
            if severity in kept:
                self.errors.append(message)

    return Log()
