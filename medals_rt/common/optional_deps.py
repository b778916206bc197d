"""Libraries that extras install: which extra installs which, and how a missing one is told.

One table serves the code that needs such a library (`import_optional`, `require`) and
`medals-rt doctor`, which looks for all of them.
"""

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from medals_rt.common.errors import MissingDependencyError


@dataclass(frozen=True)
class OptionalLibrary:
    """A library that may be missing.

    Attributes
    ----------
    name
        For people.
    modules
        Names under which it is imported, the first found counts.
    packages
        Names under which it is installed, the first found counts.
    extras
        Of medals-rt, that install it, the smallest first.
    use
        What it is for.
    detail
        Python expression, evaluated after `import module as m`, that says more; "" for nothing.
    """

    name: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    extras: tuple[str, ...]
    use: str
    detail: str = ""


OPTIONAL_LIBRARIES: Final = (
    OptionalLibrary(
        "OpenVINO",
        ("openvino",),
        ("openvino",),
        ("cpu",),
        "runs networks on a CPU, the fastest",
        "'computes in ' + ', '.join(c for c in "
        "m.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES') if c[:2] in ('FP', 'BF'))",
    ),
    OptionalLibrary(
        "ONNX Runtime",
        ("onnxruntime",),
        ("onnxruntime-gpu", "onnxruntime"),
        ("onnx", "gpu", "export"),
        "runs networks on a CPU; with CUDA as onnxruntime-gpu",
        "', '.join(p.removesuffix('ExecutionProvider') for p in m.get_available_providers())",
    ),
    OptionalLibrary(
        "CuPy",
        ("cupy",),
        ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        ("gpu",),
        "arrays on a card, which every runner there needs",
        "f'CUDA {m.cuda.runtime.runtimeGetVersion() // 1000}, ' + "
        "('finds a card' if m.is_available() else 'finds no card')",
    ),
    OptionalLibrary(
        "TensorRT",
        ("tensorrt",),
        ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
        ("tensorrt",),
        "the fastest on a data-centre card",
    ),
    OptionalLibrary(
        "TensorRT-RTX",
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        ("tensorrt_rtx", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu12_bindings"),
        ("rtx",),
        "the fastest on an RTX card; builds engines without one",
    ),
    OptionalLibrary(
        "cuCIM", ("cucim",), ("cucim-cu13", "cucim-cu12"), ("gpu",), "components on a card"
    ),
    OptionalLibrary("NiBabel", ("nibabel",), ("nibabel",), ("formats",), "NIfTI"),
    OptionalLibrary("pynrrd", ("nrrd",), ("pynrrd",), ("formats",), "NRRD"),
    OptionalLibrary("pydicom", ("pydicom",), ("pydicom",), ("dicom",), "DICOM"),
    OptionalLibrary("highdicom", ("highdicom",), ("highdicom",), ("dicom",), "DICOM segmentations"),
    OptionalLibrary(
        "Matplotlib", ("matplotlib",), ("matplotlib",), ("preview", "bench"), "previews and plots"
    ),
    OptionalLibrary(
        "Jinja2", ("jinja2",), ("jinja2",), ("preview", "bench"), "pages of folders and benchmarks"
    ),
    OptionalLibrary(
        "PyTorch",
        ("torch",),
        ("torch",),
        ("export",),
        "export, and the reference of verify",
        "'CUDA ' + m.version.cuda if m.version.cuda else 'CPU only'",
    ),
    OptionalLibrary(
        "ONNX",
        ("onnx",),
        ("onnx",),
        ("bench", "export"),
        "export, and the arithmetic of benchmarks",
    ),
    OptionalLibrary("ONNX Script", ("onnxscript",), ("onnxscript",), ("export",), "export"),
    OptionalLibrary(
        "transformers", ("transformers",), ("transformers",), ("export",), "the text encoder"
    ),
    OptionalLibrary(
        "tokenizers",
        ("tokenizers",),
        ("tokenizers",),
        ("text", "export"),
        "free sentences at run time",
    ),
)

_BY_NAME: Final = {each.name: each for each in OPTIONAL_LIBRARIES}


def modules_of(name: str) -> tuple[str, ...]:
    """Give the names under which a library of `OPTIONAL_LIBRARIES` may be imported."""
    return _BY_NAME[name].modules


def import_optional(name: str, what: str) -> Any:
    """Import a library of `OPTIONAL_LIBRARIES`.

    Parameters
    ----------
    name
        The library's.
    what
        What needs it, for the message, such as ``"a NIfTI file"``.

    Raises
    ------
    MissingDependencyError
        If it is not installed, or can't be imported; the message then says why.
    """
    cause: ImportError | None = None
    for module in modules_of(name):
        try:
            return importlib.import_module(module)
        except ImportError as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name == module
            cause = cause if absent else error
    raise missing(what, name, reason="" if cause is None else f" ({cause})") from cause


def is_installed(name: str) -> bool:
    """Whether a library of `OPTIONAL_LIBRARIES` is there, without importing it."""
    return any(find_spec(module) is not None for module in modules_of(name))


def require(what: str, *names: str) -> None:
    """Make sure that libraries are installed, without importing them; as `import_optional`.

    Raises
    ------
    MissingDependencyError
        If one is not.
    """
    absent = [name for name in names if not is_installed(name)]
    if absent:
        raise missing(what, *absent)


def missing(what: str, *names: str, reason: str = "") -> MissingDependencyError:
    """Say which libraries something needs, and what installs them: one extra if one does."""
    extras = [_BY_NAME[name].extras for name in names]
    shared = [extra for extra in extras[0] if all(extra in each for each in extras)]
    chosen = ",".join(shared[:1] or dict.fromkeys(each[0] for each in extras))
    return MissingDependencyError(
        f"{what} needs {', '.join(names)}{reason}: pip install 'medals-rt[{chosen}]'"
    )


def missing_one_of(what: str, *names: str, remark: str = "") -> MissingDependencyError:
    """Say that something needs one of several libraries, and what installs each."""
    ways = " or ".join(f"'medals-rt[{_BY_NAME[name].extras[0]}]'" for name in names)
    return MissingDependencyError(f"{what} needs {' or '.join(names)}: pip install {ways}{remark}")
