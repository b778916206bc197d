"""From checkpoints and cases to the decision: which convolutions are quantized, and how."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from medals_export.checkpoint import Checkpoint
from medals_export.quantization.calibration import record_cases
from medals_export.quantization.number_format import NumberFormat
from medals_export.quantization.sensitivity import Trial, choose_layers
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import QuantizationRecord, StageQuantization, file_sha256
from medals_rt.common.choices import STAGE_NAMES, StageNumber
from medals_rt.common.progress import Progress
from medals_rt.tools.verify.cases import read_parity_case


def quantize_stages(
    bundle: Bundle,
    checkpoints: Mapping[StageNumber, Checkpoint],
    number_format: NumberFormat,
    cases: Sequence[Path],
    progress: Progress,
) -> QuantizationRecord:
    """Segment cases in PyTorch, and decide from what was seen.

    Parameters
    ----------
    bundle
        One in floats, from the same checkpoints.
    cases
        Files or DICOM folders, with prompts in them or beside them.

    Raises
    ------
    InputError
        If a case can't be read or has no prompts, or a stage never runs or finds nothing in them.
    """
    read = [read_parity_case(path) for path in cases]
    records = record_cases(bundle, checkpoints, read, progress)

    # of both stages, before hours go by for the first
    trials = {
        stage: Trial(checkpoints[stage].model, records[stage].passes, number_format, label)
        for stage, label in STAGE_NAMES.items()
    }

    def decide(stage: StageNumber) -> StageQuantization:
        label = STAGE_NAMES[stage]
        return choose_layers(trials[stage], records[stage], number_format, label, progress)

    return QuantizationRecord(decide(1), decide(2), tuple(map(_sha256, cases)))


def _sha256(path: Path) -> str:
    """Hash a case: a file's bytes, or the hashes of a folder's files."""
    if path.is_file():
        return file_sha256(path)
    files = sorted(each for each in path.rglob("*") if each.is_file())
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()
