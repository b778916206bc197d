"""Every closed list of the package, once: commands, options, files and types read it from here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args, overload

from medals_rt.common.errors import InputError

RunnerKind: TypeAlias = Literal[
    "openvino", "onnxruntime", "onnxruntime-cuda", "cudnn", "tensorrt", "tensorrt-rtx"
]
"""Inference libraries, each with its device."""

RUNNER_KINDS: Final[tuple[RunnerKind, ...]] = get_args(RunnerKind)

RunnerChoice: TypeAlias = Literal["auto", RunnerKind]
"""What is asked for. ``auto``: the fastest that this machine can run."""

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


@dataclass(frozen=True)
class ModalityTraits:
    """What images of a modality are like.

    Attributes
    ----------
    has_body
        Whether they are of a body: with a size that can be doubted, with sides, with organs.
    spans_body
        Whether one of many voxels shows a body from side to side, so that its length can be
        doubted.
    in_hounsfield
        Whether their values are Hounsfield units, in which windows have names.
    dicom
        DICOM's name of the modality; None where it has none of its own.
    dicom_image
        UID of the SOP class of its single-frame images; None where files always name theirs.
    dicom_procedure
        Keyword of pydicom's code for a report about it; None where DICOM lists none.
    """

    has_body: bool = True
    spans_body: bool = True
    in_hounsfield: bool = False
    dicom: DicomModality | None = None
    dicom_image: str | None = None
    dicom_procedure: str | None = None


MODALITY_TRAITS: Final[Mapping[Modality, ModalityTraits]] = {
    "CT": ModalityTraits(
        in_hounsfield=True,
        dicom="CT",
        dicom_image="1.2.840.10008.5.1.4.1.1.2",
        dicom_procedure="CTUnspecifiedBodyRegion",
    ),
    "MRI": ModalityTraits(
        dicom="MR",
        dicom_image="1.2.840.10008.5.1.4.1.1.4",
        dicom_procedure="MRIUnspecifiedBodyRegion",
    ),
    "US": ModalityTraits(spans_body=False, dicom="US"),
    "PET": ModalityTraits(dicom="PT", dicom_image="1.2.840.10008.5.1.4.1.1.128"),
    "Microscopy": ModalityTraits(has_body=False, spans_body=False),
}
MODALITY_OF_DICOM: Final[Mapping[str, Modality]] = {
    traits.dicom: modality for modality, traits in MODALITY_TRAITS.items() if traits.dicom
}
"""DICOM's names of modalities, and those of prompts."""

OutputFormat: TypeAlias = Literal[
    "npz",
    "nifti",
    "nrrd",
    "metaimage",
    "freesurfer",
    "dicom-seg",
    "dicom-labelmap-seg",
    "rtstruct",
    "glb",
    "stl",
]
"""Names of the formats of `io.registry` that results can be written in."""

SAME_FORMAT: Final = "same"
"""In a batch, the format that is that of each case."""


_MODALITY_NAMES: Final[dict[str, Modality]] = {
    **{each.casefold(): each for each in MODALITIES},
    **{each.casefold(): modality for each, modality in MODALITY_OF_DICOM.items()},
}


def traits_of(modality: str) -> ModalityTraits:
    """Return what images of a modality are like.

    Raises
    ------
    InputError
        There is none of that name (code `modality-unknown`).
    """
    return MODALITY_TRAITS[modality_named(modality)]


def traits_of_dicom(name: str) -> ModalityTraits:
    """Return the same by DICOM's name; of modalities that no prompt has (NM), nothing special."""
    modality = MODALITY_OF_DICOM.get(name)
    return ModalityTraits() if modality is None else MODALITY_TRAITS[modality]


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
