"""Which optional libraries are installed, in which version, and whether they can be imported.

Each is imported in a child process: a library whose own libraries do not fit may end the process
that imports it, and a doctor must survive the disease.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal

State = Literal["installed", "missing", "broken"]

_TIMEOUT_S = 120
_AT_ONCE = 4


@dataclass(frozen=True)
class Kind:
    """A library to look for.

    Attributes
    ----------
    name
        For people.
    modules
        Names under which it is imported, the first found counts.
    packages
        Names under which it is installed, the first found counts.
    extra
        Of medals-rt, that installs it.
    use
        What it is for.
    detail
        Python expression, evaluated after `import module as m`, that says more; "" for nothing.
    """

    name: str
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    extra: str
    use: str
    detail: str = ""


@dataclass(frozen=True)
class Library:
    """What was found of one library; `reason` says why a broken one can't be imported."""

    name: str
    state: State
    version: str | None
    extra: str
    use: str
    detail: str | None = None
    reason: str | None = None


KINDS: tuple[Kind, ...] = (
    Kind(
        "OpenVINO",
        ("openvino",),
        ("openvino",),
        "cpu",
        "runs networks on a CPU, the fastest",
        "'computes in ' + ', '.join(c for c in "
        "m.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES') if c[:2] in ('FP', 'BF'))",
    ),
    Kind(
        "ONNX Runtime",
        ("onnxruntime",),
        ("onnxruntime-gpu", "onnxruntime"),
        "onnx",
        "runs networks on a CPU; with CUDA as onnxruntime-gpu",
        "', '.join(p.removesuffix('ExecutionProvider') for p in m.get_available_providers())",
    ),
    Kind(
        "CuPy",
        ("cupy",),
        ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
        "gpu",
        "arrays on a card, which every runner there needs",
        "f'CUDA {m.cuda.runtime.runtimeGetVersion() // 1000}, ' + "
        "('finds a card' if m.is_available() else 'finds no card')",
    ),
    Kind(
        "TensorRT",
        ("tensorrt",),
        ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
        "tensorrt",
        "the fastest on a data-centre card",
    ),
    Kind(
        "TensorRT-RTX",
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        ("tensorrt_rtx", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu12_bindings"),
        "rtx",
        "the fastest on an RTX card; builds engines without one",
    ),
    Kind("cuCIM", ("cucim",), ("cucim-cu13", "cucim-cu12"), "gpu", "components on a card"),
    Kind("NiBabel", ("nibabel",), ("nibabel",), "formats", "NIfTI"),
    Kind("pynrrd", ("nrrd",), ("pynrrd",), "formats", "NRRD"),
    Kind("pydicom", ("pydicom",), ("pydicom",), "dicom", "DICOM"),
    Kind("highdicom", ("highdicom",), ("highdicom",), "dicom", "DICOM segmentations"),
    Kind("Matplotlib", ("matplotlib",), ("matplotlib",), "preview", "previews and plots"),
    Kind("Jinja2", ("jinja2",), ("jinja2",), "preview", "pages of folders and benchmarks"),
    Kind(
        "PyTorch",
        ("torch",),
        ("torch",),
        "export",
        "export, and the reference of verify",
        "'CUDA ' + m.version.cuda if m.version.cuda else 'CPU only'",
    ),
    Kind("ONNX", ("onnx",), ("onnx",), "export", "export"),
    Kind("ONNX Script", ("onnxscript",), ("onnxscript",), "export", "export"),
    Kind("transformers", ("transformers",), ("transformers",), "export", "the text encoder"),
    Kind("tokenizers", ("tokenizers",), ("tokenizers",), "text", "free sentences at run time"),
)


def look_at_libraries(kinds: Iterable[Kind] = KINDS) -> tuple[Library, ...]:
    """Look for each library, and import those that are there, a few at once."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return tuple(pool.map(look_at_library, kinds))


def look_at_library(kind: Kind) -> Library:
    """Look for one library, and import it in a child process if it is there."""
    module = next((name for name in kind.modules if find_spec(name) is not None), None)
    if module is None:
        return Library(kind.name, "missing", None, kind.extra, kind.use)
    detail, reason = import_apart(module, kind.detail)
    state: State = "installed" if reason is None else "broken"
    found = installed_version(kind.packages)
    return Library(kind.name, state, found, kind.extra, kind.use, detail, reason)


def import_apart(module: str, detail: str = "") -> tuple[str | None, str | None]:
    """Import a module in a child process: give what `detail` evaluates to, or why it failed."""
    code = f"import {module} as m; print({detail or repr('')})"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        return None, f"its import did not end within {_TIMEOUT_S} s"
    said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode == 0:
        return said[-1] if said else None, None
    complaint = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if done.returncode < 0:
        return None, f"its import ended the process with signal {-done.returncode}"
    return None, complaint[-1] if complaint else f"its import ended with {done.returncode}"


def installed_version(packages: Iterable[str]) -> str | None:
    """Give the version of the first of these packages that is installed."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return None
