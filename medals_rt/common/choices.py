"""Every closed list of the package, once: commands, options, files and types read it from here."""

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, get_args, overload

from medals_rt.common.errors import InputError

RunnerKind: TypeAlias = Literal[
    "openvino", "onnxruntime", "onnxruntime-cuda", "cudnn", "tensorrt", "tensorrt-rtx"
]
"""Inference libraries, each with its device."""

RUNNER_KINDS: Final[tuple[RunnerKind, ...]] = get_args(RunnerKind)

RunnerChoice: TypeAlias = Literal["auto", RunnerKind]
"""What is asked for. ``auto``: the fastest that this machine can run."""

CpuRunnerKind: TypeAlias = Literal["openvino", "onnxruntime"]
CPU_RUNNERS: Final[tuple[CpuRunnerKind, ...]] = get_args(CpuRunnerKind)

TensorRTKind: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]
TENSORRT_LABELS: Final[dict[TensorRTKind, str]] = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}
"""How NVIDIA writes them."""

FloatPrecision: TypeAlias = Literal["fp32", "fp16", "bf16"]

QuantizedPrecision: TypeAlias = Literal["int8", "fp8"]
"""Of graphs most of whose convolutions are of 8 bits: only bundles exported so are run so."""
QUANTIZED_PRECISIONS: Final[tuple[QuantizedPrecision, ...]] = get_args(QuantizedPrecision)

Precision: TypeAlias = Literal[FloatPrecision, QuantizedPrecision]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
"""The finest first."""

PrecisionChoice: TypeAlias = Literal["auto", Precision]
"""What is asked for. ``auto``: the fastest of this processor, or that of a quantized bundle."""

Convolution: TypeAlias = Literal["direct", "winograd"]
"""How large 3x3x3 convolutions are computed on a CPU. ``direct``: by the library. ``winograd``: by
`medals_rt.runners.winograd`, with 8 times fewer multiplications."""

ConvolutionChoice: TypeAlias = Literal["auto", Convolution]
"""What is asked for. ``auto``: by what was measured to be faster."""
CONVOLUTIONS: Final[tuple[ConvolutionChoice, ...]] = get_args(ConvolutionChoice)

Refinement: TypeAlias = Literal["masked", "unmasked", "none"]
"""``masked``: Algorithm 2. ``unmasked``: each masked pair is one pass that sees the whole prompts.
``none``: one pass from the text alone."""
REFINEMENTS: Final[tuple[Refinement, ...]] = get_args(Refinement)

PresetName: TypeAlias = Literal["paper", "release", "native"]
PRESETS: Final[tuple[PresetName, ...]] = get_args(PresetName)

StageNumber: TypeAlias = Literal[1, 2]
StageName: TypeAlias = Literal["coarse", "fine"]
STAGE_NAMES: Final[dict[StageNumber, StageName]] = {1: "coarse", 2: "fine"}

Stages: TypeAlias = Literal[StageName, "both"]
"""Which stages are run: one alone, or the fine one inside what the coarse one found."""
STAGES: Final[tuple[Stages, ...]] = get_args(Stages)

StartFrom: TypeAlias = Literal["coarse", "text"]
"""What masked refinement starts from: the coarse labels, or a pass from the text alone."""
STARTS: Final[tuple[StartFrom, ...]] = get_args(StartFrom)

Postprocess: TypeAlias = Literal["auto", "off", "all"]
"""Which classes Algorithm 3 treats. ``auto``: those of the preset's rule. ``off``: none. ``all``:
every anatomy class."""
POSTPROCESS: Final[tuple[Postprocess, ...]] = get_args(Postprocess)

Kind: TypeAlias = Literal["anatomy", "lesion"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

Modality: TypeAlias = Literal["CT", "MRI", "US", "PET", "Microscopy"]
MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)
DicomModality: TypeAlias = Literal["CT", "MR", "PT", "US"]
"""DICOM's names of the modalities that it has."""
MODALITY_OF_DICOM: Final[Mapping[str, Modality]] = {
    "CT": "CT",
    "MR": "MRI",
    "PT": "PET",
    "US": "US",
}
"""DICOM's names of modalities, and those of prompts."""
BODY_MODALITIES: Final[tuple[Modality, ...]] = ("CT", "MRI", "US", "PET")
"""Those whose images are of a body: with a size that can be doubted, with sides, with organs."""

OutputFormat: TypeAlias = Literal[
    "npz", "nifti", "nrrd", "metaimage", "dicom-seg", "dicom-labelmap-seg", "rtstruct", "glb", "stl"
]
"""Names of the formats of `io.registry` that results can be written in."""

SAME_FORMAT: Final = "same"
"""In a batch, the format that is that of each case."""


_MODALITY_NAMES: Final[dict[str, Modality]] = {
    **{each.casefold(): each for each in MODALITIES},
    **{each.casefold(): modality for each, modality in MODALITY_OF_DICOM.items()},
}


@overload
def modality_named(name: str) -> Modality: ...
@overload
def modality_named(name: str | None) -> Modality | None: ...
def modality_named(name: str | None) -> Modality | None:
    """Return the modality of a name in any case, which may be DICOM's; None where there is none.

    Raises
    ------
    InputError
        There is none of that name (code `modality-unknown`).
    """
    if name is None:
        return None
    found = _MODALITY_NAMES.get(name.strip().casefold())
    if found is None:
        raise InputError(
            f"no modality {name!r}; choose from {', '.join(MODALITIES)}", code="modality-unknown"
        )
    return found


def check_kind(kind: str | None) -> None:
    """Refuse a kind that isn't one of `KINDS` or `None`."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"no kind {kind!r}; choose from {', '.join(KINDS)}", code="kind-unknown")
