"""Which convolutions Winograd's are faster for: what was measured, and what follows from it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from medals_rt.common.atomic_io import atomic_output
from medals_rt.common.cache_dir import cache_folder
from medals_rt.common.choices import Precision
from medals_rt.common.optional_deps import import_optional

SHIPPED: Final = Path(__file__).with_name("timings.json")
"""What was measured on processors of some instruction sets."""

_AT_LEAST: Final = 1.1
"""A gain below it is not worth the rounding that differs."""


class Timing(msgspec.Struct, frozen=True):
    """Processor seconds of a convolution with its norm and activation, C to C channels.

    Attributes
    ----------
    processor
        An instruction set, of what is shipped; a processor's name, of what was measured here.
    precision
        Of the library's own convolution: "fp32" or "bf16".
    channels, voxels
        C, and H W D.
    direct_seconds, winograd_seconds
        The library's own, and ours.
    measured
        On what.
    """

    processor: str
    precision: Precision
    channels: int
    voxels: int
    direct_seconds: float
    winograd_seconds: float
    measured: str = ""

    @property
    def ratio(self) -> float:
        """How many times as fast Winograd is."""
        return self.direct_seconds / self.winograd_seconds

    @property
    def pays(self) -> bool:
        """Whether that is enough to take it."""
        return self.ratio >= _AT_LEAST


@dataclass(frozen=True)
class ConvolutionRule:
    """Says for which convolutions Winograd is taken.

    Attributes
    ----------
    points
        Channels and voxels, and whether it is faster there. What lies between two points is taken
        to be as the next smaller one; below the smallest it never is.
    """

    points: tuple[tuple[int, int, bool], ...]

    def __call__(self, channels: int, voxels: int) -> bool:
        """Whether to take it for an output of so many channels and voxels."""
        smaller = [point for point in self.points if point[0] <= channels and point[1] <= voxels]
        return max(smaller)[2] if smaller else False

    @property
    def never(self) -> bool:
        """Whether it is taken for nothing."""
        return not any(faster for _, _, faster in self.points)


WHEREVER_POSSIBLE: Final = ConvolutionRule(((0, 32**3, True),))
"""Of what is asked for; small volumes are left to the library in any case."""

NOTHING: Final = ConvolutionRule(())


def rule_here(precision: Precision, processor: str) -> ConvolutionRule:
    """Return the rule for this machine.

    Parameters
    ----------
    precision
        What the library computes in.
    processor
        Its name: measurements of the user's own for it take precedence, point by point, over
        those shipped, as some may be missing where measuring was interrupted.
    """
    known = [
        *(each for each in _read(SHIPPED) if each.processor == instruction_set(precision)),
        *(each for each in _read(own_file()) if each.processor == processor),
    ]
    points = {(t.channels, t.voxels): t.pays for t in known if t.precision == precision}
    return ConvolutionRule(tuple((*point, pays) for point, pays in points.items()))


def own_file() -> Path | None:
    """Return where the user's own measurements are kept; None where there is no home folder."""
    try:
        return cache_folder() / "convolutions.json"
    except RuntimeError:
        return None


def keep(timings: Sequence[Timing]) -> Path | None:
    """Add measurements to the user's own, in place of older ones of the same.

    Returns
    -------
    Path or None
        The file; None where there is none to write.
    """
    file = own_file()
    if file is None:
        return None
    made = {_measured(each) for each in timings}
    others = [each for each in _read(file) if _measured(each) not in made]
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(file) as temporary:
        temporary.write_bytes(to_json([*others, *timings]))
    return file


def _measured(timing: Timing) -> tuple[str, str, int, int]:
    return timing.processor, timing.precision, timing.channels, timing.voxels


def to_json(timings: Sequence[Timing]) -> bytes:
    """Write measurements as JSON, one a line."""
    lines = b",\n".join(msgspec.json.encode(each) for each in timings)
    return b"[\n" + lines + b"\n]\n"


def _read(file: Path | None) -> list[Timing]:
    """Read measurements; none where there are none, or none that can be read."""
    try:
        return [] if file is None else msgspec.json.decode(file.read_bytes(), type=list[Timing])
    except (OSError, msgspec.MsgspecError):
        return []


def processor_features() -> dict[str, bool]:
    """Return what this processor can do, by LLVM's names; llvmlite must be installed.

    `$ONEDNN_MAX_CPU_ISA`, by which OpenVINO's own convolutions can be held to AVX2, holds for ours,
    too.
    """
    import_optional("llvmlite", "Winograd convolutions")
    from llvmlite import binding

    features = dict(binding.get_host_cpu_features())
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper().startswith("AVX2"):
        hidden = ("avx512", "amx", "avx10", "evex512")
        features |= {name: False for name in features if name.startswith(hidden)}
    return features


def instruction_set(precision: Precision) -> str:
    """Name the instructions by which the library computes a precision on this processor."""
    features = processor_features()
    names = {
        "bf16": (("amx-bf16", "amx_bf16"), ("avx512bf16", "avx512_bf16")),
        "fp32": (("avx512f", "avx512"), ("avx2", "avx2")),
    }
    return next((own for llvm, own in names.get(precision, ()) if features.get(llvm)), "other")
