"""How long a pass of a bundle's network took on this machine, kept for time budgets and plans.

One small JSON file in the user's cache folder, keyed by the bundle's hash and the runner. Only
commands and jobs write it, never a call of the library. A file that can't be read or written counts
as an empty one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medals_rt.common.atomic_io import write_json
from medals_rt.common.cache_dir import cache_folder
from medals_rt.common.choices import STAGE_NAMES, Convolution, StageNumber

_KEPT_ENTRIES = 64


@dataclass(frozen=True)
class MeasuredPasses:
    """Seconds of one pass in each stage.

    Attributes
    ----------
    runner
        What took them; see `measured_on`.
    seconds_per_pass
        By stage number, 1 coarse and 2 fine.
    """

    runner: str
    seconds_per_pass: Mapping[StageNumber, float]


def measured_on(runner: str, precision: str, convolution: Convolution) -> str:
    """Return the name under which passes are kept, such as ``"openvino/bf16/winograd"``."""
    parts = [runner, precision, *([] if convolution == "direct" else [convolution])]
    return "/".join(parts)


def record(bundle_hash: str, measured: MeasuredPasses) -> bool:
    """Keep what was measured of a bundle; return whether that could be stored.

    Stages that were not measured keep their last figure.
    """
    known = _read()
    key = f"{bundle_hash}/{measured.runner}"
    # Taken out and put back, so that the entries are in the order of their last use.
    new = {str(stage): round(each, 4) for stage, each in measured.seconds_per_pass.items()}
    stages = {**known.pop(key, {}), **new}
    known[key] = stages
    kept = dict(list(known.items())[-_KEPT_ENTRIES:])
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(), kept)
    except OSError:
        return False
    return True


def recall(bundle_hash: str, runner: str | None = None) -> MeasuredPasses | None:
    """Return what was last measured of a bundle, on one runner or on any; None: nothing was."""
    for key, stages in reversed(_read().items()):
        bundle, _, how = key.partition("/")
        if bundle == bundle_hash and runner in {None, how}:
            known = {each: stages[str(each)] for each in STAGE_NAMES if str(each) in stages}
            return MeasuredPasses(how, known)
    return None


def _file() -> Path:
    return cache_folder() / "measured_passes.json"


def _read() -> dict[str, dict[str, float]]:
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {
        key: {
            stage: float(seconds)
            for stage, seconds in stages.items()
            if stage in {"1", "2"} and isinstance(seconds, int | float) and seconds > 0
        }
        for key, stages in content.items()
        if isinstance(stages, dict)
    }
