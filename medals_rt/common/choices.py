"""Every closed list of the package, once: commands, options, files and types read it from here."""

from typing import Final, Literal, TypeAlias, get_args

RunnerKind: TypeAlias = Literal[
    "openvino", "onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"
]
"""Inference libraries, each with its device."""

RUNNER_KINDS: Final[tuple[RunnerKind, ...]] = get_args(RunnerKind)

TensorRTKind: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]
TENSORRT_LABELS: Final[dict[TensorRTKind, str]] = {
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
}
"""How NVIDIA writes them."""

Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)

Refinement: TypeAlias = Literal["masked", "unmasked", "none"]
"""``masked``: Algorithm 2. ``unmasked``: each masked pair is one pass that sees the whole prompts.
``none``: one pass from the text alone."""
REFINEMENTS: Final[tuple[Refinement, ...]] = get_args(Refinement)

PresetName: TypeAlias = Literal["paper", "release"]
PRESETS: Final[tuple[PresetName, ...]] = get_args(PresetName)

Kind: TypeAlias = Literal["anatomy", "lesion"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

Modality: TypeAlias = Literal["CT", "MRI", "US", "PET", "Microscopy"]
MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)

StageNumber: TypeAlias = Literal[1, 2]
STAGE_NAMES: Final[dict[StageNumber, str]] = {1: "coarse", 2: "fine"}
