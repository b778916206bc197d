"""Libraries that extras install: what each is for, and the error where one is missing.

One table serves the code that needs such a library (`import_optional`, `require`) and
`medals-rt doctor`, which looks for all of them. Which extra installs which is not repeated here:
`distribution` reads it from the installed metadata.
"""

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final

from medals_rt.common import gpu
from medals_rt.common.distribution import NAME, extras_with
from medals_rt.common.errors import MissingDependencyError

GPU_EXTRAS: Final = {
    "gpu": ("cupy-cuda12x", "cucim-cu12"),
    "gpu-cuda13": ("cupy-cuda13x", "cucim-cu13"),
}
"""The extras for a GPU, each with packages that no other has; of them one is installed."""


@dataclass(frozen=True)
class OptionalLibrary:
    """A library that may be missing.

    Attributes
    ----------
    name
        For people.
    modules
        Names under which it is imported; the first that is found is used.
    packages
        Names under which it is installed; the first that is found is used.
    use
        What it is for.
    detail
        Python expression, evaluated after `import module as m`, that says more; "" for nothing.
    """

    name: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    use: str
    detail: str = ""

    @property
    def extras(self) -> tuple[str, ...]:
        """Extras of medals-rt that install it, the smallest first; for a GPU, the fitting one."""
        unfit = GPU_EXTRAS.keys() - {gpu_extra()}
        return tuple(each for each in extras_with(self.packages) if each not in unfit)

    @property
    def extra(self) -> str:
        """The extra to install for it; empty where medals-rt itself isn't installed."""
        return next(iter(self.extras), "")


OPTIONAL_LIBRARIES: Final = (
    OptionalLibrary(
        "OpenVINO",
        ("openvino",),
        ("openvino",),
        "runs networks on a CPU, the fastest there",
        "'computes in ' + ', '.join(c for c in "
        "m.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES') if c[:2] in ('FP', 'BF'))",
    ),
    OptionalLibrary(
        "llvmlite",
        ("llvmlite",),
        ("llvmlite",),
        "compiles fast convolutions for the processor",
    ),
    OptionalLibrary(
        "ONNX Runtime",
        ("onnxruntime",),
        ("onnxruntime-gpu", "onnxruntime"),
        "runs networks on a CPU; as onnxruntime-gpu also on a GPU",
        "', '.join(p.removesuffix('ExecutionProvider') for p in m.get_available_providers())",
    ),
    OptionalLibrary(
        "CuPy",
        ("cupy",),
        ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "arrays on a GPU, which every GPU runner needs",
        "f'CUDA {m.cuda.runtime.runtimeGetVersion() // 1000}, ' + "
        "('finds a GPU' if m.is_available() else 'finds no GPU')",
    ),
    OptionalLibrary(
        "cuDNN frontend",
        ("cudnn",),
        ("nvidia-cudnn-frontend",),
        "convolves on a GPU, the fastest there without TensorRT",
    ),
    OptionalLibrary(
        "TensorRT",
        ("tensorrt",),
        ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
        "runs networks on a data-center GPU, the fastest there",
    ),
    OptionalLibrary(
        "TensorRT-RTX",
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        ("tensorrt_rtx", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu12_bindings"),
        "runs networks on an RTX GPU, the fastest there; builds engines without one",
    ),
    OptionalLibrary(
        "cuCIM", ("cucim",), ("cucim-cu13", "cucim-cu12"), "connected components on a GPU"
    ),
    OptionalLibrary("NiBabel", ("nibabel",), ("nibabel",), "NIfTI"),
    OptionalLibrary("pynrrd", ("nrrd",), ("pynrrd",), "NRRD"),
    OptionalLibrary("pydicom", ("pydicom",), ("pydicom",), "DICOM"),
    OptionalLibrary("highdicom", ("highdicom",), ("highdicom",), "DICOM segmentations"),
    OptionalLibrary("pyjpegls", ("jpeg_ls",), ("pyjpegls",), "DICOM label map segmentations"),
    OptionalLibrary("ContourPy", ("contourpy",), ("contourpy",), "DICOM structure sets"),
    OptionalLibrary("dicomweb-client", ("dicomweb_client",), ("dicomweb-client",), "DICOMweb"),
    OptionalLibrary("pynetdicom", ("pynetdicom",), ("pynetdicom",), "the DICOM node"),
    OptionalLibrary("scikit-image", ("skimage",), ("scikit-image",), "surfaces as meshes"),
    OptionalLibrary(
        "fast-simplification",
        ("fast_simplification",),
        ("fast-simplification",),
        "meshes of fewer faces",
    ),
    OptionalLibrary("Matplotlib", ("matplotlib",), ("matplotlib",), "previews and plots"),
    OptionalLibrary("Jinja2", ("jinja2",), ("jinja2",), "HTML pages of batches and benchmarks"),
    OptionalLibrary(
        "PyTorch",
        ("torch",),
        ("torch",),
        "export, and the reference of `medals-rt verify`",
        "'CUDA ' + m.version.cuda if m.version.cuda else 'CPU only'",
    ),
    OptionalLibrary("ONNX", ("onnx",), ("onnx",), "export, and operation counts of benchmarks"),
    OptionalLibrary("ONNX Script", ("onnxscript",), ("onnxscript",), "export"),
    OptionalLibrary(
        "transformers", ("transformers",), ("transformers",), "export of the text encoder"
    ),
    OptionalLibrary("tokenizers", ("tokenizers",), ("tokenizers",), "free text as prompts"),
    OptionalLibrary(
        "huggingface_hub",
        ("huggingface_hub",),
        ("huggingface_hub",),
        "weights and bundles from a model hub",
    ),
    OptionalLibrary("Ray", ("ray",), ("ray",), "batches on a cluster"),
    OptionalLibrary(
        "fsspec", ("fsspec",), ("fsspec",), "batches whose files lie behind URLs, such as s3://"
    ),
    OptionalLibrary("FastAPI", ("fastapi",), ("fastapi",), "the HTTP service"),
    OptionalLibrary("uvicorn", ("uvicorn",), ("uvicorn",), "the HTTP service"),
    OptionalLibrary(
        "Blosc2", ("blosc2",), ("blosc2",), "arrays of the HTTP service's other clients"
    ),
    OptionalLibrary(
        "python-multipart",
        ("python_multipart",),
        ("python-multipart",),
        "forms of the HTTP service's other clients",
    ),
    OptionalLibrary("HTTPX", ("httpx",), ("httpx",), "the HTTP service's Python client"),
)

_BY_NAME: Final = {each.name: each for each in OPTIONAL_LIBRARIES}


def gpu_extra() -> str:
    """Return the extra with the libraries for this machine's GPU.

    The one of which a package is installed, because those for CUDA 12 and 13 exclude each other;
    else that of the newest CUDA that the driver runs.
    """
    for extra, packages in GPU_EXTRAS.items():
        if any(map(_is_distribution, packages)):
            return extra
    found = gpu.find_gpu()
    return "gpu-cuda13" if found is not None and found.runs_cuda13 else "gpu"


def _is_distribution(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def modules_of(name: str) -> tuple[str, ...]:
    """Return the names under which a library of `OPTIONAL_LIBRARIES` may be imported."""
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
    """Check that libraries are installed, without importing them; as `import_optional`.

    Raises
    ------
    MissingDependencyError
        If one is not.
    """
    absent = [name for name in names if not is_installed(name)]
    if absent:
        raise missing(what, *absent)


def missing(what: str, *names: str, reason: str = "") -> MissingDependencyError:
    """Return the error that names the libraries that something needs, and how to install them."""
    return MissingDependencyError(
        f"{what} needs {', '.join(names)}{reason}: pip install {_to_install(*names)}"
    )


def missing_one_of(what: str, *names: str, remark: str = "") -> MissingDependencyError:
    """Return the error that something needs one of several libraries, and how to install each."""
    extras = " or ".join(map(_to_install, names))
    return MissingDependencyError(
        f"{what} needs {' or '.join(names)}: pip install {extras}{remark}"
    )


def _to_install(*names: str) -> str:
    """Return what pip installs for libraries: one extra if it has all, else one for each."""
    libraries = [_BY_NAME[name] for name in names]
    if not all(each.extras for each in libraries):
        return " ".join(each.packages[0] for each in libraries)
    shared = [
        extra for extra in libraries[0].extras if all(extra in each.extras for each in libraries)
    ]
    chosen = shared[:1] or dict.fromkeys(each.extra for each in libraries)
    return f"'{NAME}[{','.join(chosen)}]'"
