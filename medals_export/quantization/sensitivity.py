"""Which layers are quantized: all but the fewest that cost a stage its agreement with float32."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from medals_export.model import MedalS
from medals_export.quantization.calibration import RecordedPass, RecordedStage
from medals_export.quantization.layers import quantized_network
from medals_export.quantization.number_format import NumberFormat
from medals_export.quantization.ranges import best_range
from medals_rt.bundle.manifest import QuantizedLayer, StageQuantization
from medals_rt.common.errors import InputError
from medals_rt.common.progress import Progress
from medals_rt.tools.verify.measures import rms_error

LEAST_DSC = 0.995
"""Mean over passes and classes of the overlap with what the network finds in float32."""

_SMALLEST_VOXELS = 100  # of a class in a window: the overlap of fewer is chance
_SIGNIFICANT_DIGITS = 4
_AXES = (1, 2, 3)  # of a class's voxels in `(N, H, W, D)`


def choose_layers(
    trial: "Trial",
    record: RecordedStage,
    number_format: NumberFormat,
    label: str,
    progress: Progress,
) -> StageQuantization:
    """Measure each layer alone, then leave out the most sensitive ones until the rest will do.

    The error of a layer is that of the probabilities (`measures.rms_error`) where it alone is
    quantized. How many of the largest errors are left out is found by halving: an error more never
    brings a network nearer, but by chance. A layer that read nothing but zeros has no range that
    was seen, and is left out too.

    Parameters
    ----------
    trial
        The network, with passes that show something.
    record
        What it saw of real cases.
    label
        The stage, for `progress`.
    """
    ranges = {layer: best_range(seen, number_format) for layer, seen in record.magnitudes.items()}
    errors = {}
    for number, layer in enumerate(ranges):
        progress(f"{label}: sensitivity", number, len(ranges))
        errors[layer], _ = trial.agreement({layer: ranges[layer]})
    progress(f"{label}: sensitivity", len(ranges), len(ranges))
    seen = (layer for layer in ranges if record.magnitudes[layer].largest > 0)
    by_error = sorted(seen, key=lambda layer: errors[layer])
    enough, most = 0, len(by_error)
    tried = most
    while enough < most:
        _, dsc = trial.agreement({layer: ranges[layer] for layer in by_error[:tried]})
        enough, most = (tried, most) if dsc >= LEAST_DSC else (enough, tried - 1)
        tried = (enough + most + 1) // 2
    chosen = frozenset(by_error[:enough])
    error, dsc = trial.agreement({layer: ranges[layer] for layer in ranges if layer in chosen})
    return StageQuantization(
        layers=tuple(
            QuantizedLayer(layer, _rounded(largest), _rounded(errors[layer]), layer in chosen)
            for layer, largest in ranges.items()
        ),
        passes=record.seen,
        rms_error=_rounded(error),
        mean_dsc=_rounded(dsc),
    )


def chosen_ranges(quantization: StageQuantization) -> dict[str, float]:
    """Return the range of what each quantized layer reads."""
    return {each.layer: each.range for each in quantization.layers if each.quantized}


class Trial:
    """Networks with some layers quantized, held to the network itself on recorded passes.

    Parameters
    ----------
    network
        In float32.
    passes
        Of real cases.
    label
        The stage, for errors.

    Raises
    ------
    InputError
        If there are no passes, or the network finds nothing in them: whatever is quantized would
        agree with that.
    """

    def __init__(
        self,
        network: MedalS,
        passes: Sequence[RecordedPass],
        number_format: NumberFormat,
        label: str,
    ) -> None:
        if not passes:
            raise InputError(
                f"no case to calibrate with runs the {label} stage; add one with classes that it "
                "looks for",
                code="calibration-stage-unseen",
            )
        self._network = network
        self._format = number_format
        self._passes = [(each, each.probabilities(network)) for each in passes]
        if not any(_is_there(expected > 0.5).any() for _, expected in self._passes):
            raise InputError(
                f"the {label} stage finds no class of {_SMALLEST_VOXELS} voxels or more in the "
                f"{len(passes)} windows to calibrate with, so any error would pass; give cases "
                "that show what their prompts name",
                code="calibration-shows-nothing",
            )

    def agreement(self, ranges: Mapping[str, float]) -> tuple[float, float]:
        """Return the root mean square error, and the mean DSC of the classes that are there."""
        quantized = quantized_network(self._network, ranges, self._format)
        errors, overlaps = [], []
        for one, expected in self._passes:
            found = one.probabilities(quantized)
            errors.append(rms_error(found.numpy(), expected.numpy()))
            overlaps += _overlaps(found > 0.5, expected > 0.5)
        return sum(errors) / len(errors), sum(overlaps) / len(overlaps)


def _is_there(masks: Tensor) -> Tensor:
    """Return which classes are large enough to compare, `(N,)` bool."""
    return masks.sum(dim=_AXES) >= _SMALLEST_VOXELS


def _overlaps(found: Tensor, expected: Tensor) -> list[float]:
    """Return the DSC of each class that is there: masks `(N, H, W, D)` bool."""
    both, ours, theirs = (mask.sum(dim=_AXES) for mask in (found & expected, found, expected))
    there = _is_there(expected)
    return (2 * both[there] / (ours + theirs)[there]).tolist()


def _rounded(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
