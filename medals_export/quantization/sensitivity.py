"""Which layers are quantized: all but the fewest that cost a stage its agreement with float32."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from medals_export.model import MedalS
from medals_export.quantization.calibration import CalibrationRecord, RecordedPass
from medals_export.quantization.layers import quantized_network
from medals_export.quantization.number_format import NumberFormat
from medals_export.quantization.ranges import best_range
from medals_rt.bundle.manifest import QuantizedLayer, StageQuantization
from medals_rt.common.progress import Progress
from medals_rt.tools.verify.measures import rms_error

LEAST_DSC = 0.995
"""Mean over passes and classes of the overlap with what the network finds in float32."""

_SMALLEST_VOXELS = 100  # of a class in a window: the overlap of fewer is chance
_SIGNIFICANT_DIGITS = 4


def choose_layers(
    network: MedalS,
    record: CalibrationRecord,
    number_format: NumberFormat,
    label: str,
    progress: Progress,
) -> StageQuantization:
    """Measure each layer alone, then leave out the most sensitive ones until the rest will do.

    The error of a layer is that of the probabilities (`measures.rms_error`) where it alone is
    quantized. How many of the largest errors are left out is found by halving: an error more never
    brings a network nearer, but by chance.

    Parameters
    ----------
    network
        In float32.
    record
        What it saw of real cases.
    label
        The stage, for `progress`.
    """
    ranges = {layer: best_range(seen, number_format) for layer, seen in record.magnitudes.items()}
    trial = _Trial(network, record.passes, number_format)
    errors = {}
    for number, layer in enumerate(ranges):
        progress(f"{label}: sensitivity", number, len(ranges))
        errors[layer], _ = trial.agreement({layer: ranges[layer]})
    progress(f"{label}: sensitivity", len(ranges), len(ranges))
    by_error = sorted(ranges, key=lambda layer: errors[layer])
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


class _Trial:
    """Networks with some layers quantized, held to the network itself on recorded passes."""

    def __init__(
        self, network: MedalS, passes: Sequence[RecordedPass], number_format: NumberFormat
    ) -> None:
        self._network = network
        self._format = number_format
        self._passes = [(each, each.probabilities(network)) for each in passes]

    def agreement(self, ranges: Mapping[str, float]) -> tuple[float, float]:
        """Return the root mean square error, and the mean DSC (1 where no class is found)."""
        quantized = quantized_network(self._network, ranges, self._format)
        errors, overlaps = [], []
        for one, expected in self._passes:
            found = one.probabilities(quantized)
            errors.append(rms_error(found.numpy(), expected.numpy()))
            overlaps += _overlaps(found > 0.5, expected > 0.5)
        mean_dsc = sum(overlaps) / len(overlaps) if overlaps else 1.0
        return sum(errors) / len(errors), mean_dsc


def _overlaps(found: Tensor, expected: Tensor) -> list[float]:
    """Return the DSC of each class that is there: masks `(N, H, W, D)` bool."""
    axes = (1, 2, 3)
    both, ours, theirs = (mask.sum(dim=axes) for mask in (found & expected, found, expected))
    there = theirs >= _SMALLEST_VOXELS
    return (2 * both[there] / (ours + theirs)[there]).tolist()


def _rounded(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
