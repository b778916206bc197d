"""Remembers how long one pass of a bundle's network took on this machine, for `medals-rt plan`.

One small JSON in the user's cache folder, keyed by the bundle's hash and the runner. It only feeds
estimates: nothing that decides a result is read from it, and a file that can't be read or written
counts as no memory.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medals_rt.common.atomic_io import write_json
from medals_rt.common.cache_dir import cache_folder

_KEPT_ENTRIES = 64


@dataclass(frozen=True)
class MeasuredPasses:
    """Seconds of one pass in each stage (1 coarse, 2 fine), and the runner that took them."""

    runner: str
    seconds_per_pass: Mapping[int, float]


def record(bundle_hash: str, runner: str, seconds_per_pass: Mapping[int, float]) -> bool:
    """Keep the seconds a pass of a bundle on a runner; tell whether that could be stored.

    Parameters
    ----------
    bundle_hash : the bundle's hash, as in the run's report
    runner : runner and precision, such as "openvino/bf16"
    seconds_per_pass : stage number to seconds; stages left out keep their last figure
    """
    known = _read()
    key = f"{bundle_hash}/{runner}"
    # Taken out and put back, so that the entries stand in the order of their last use.
    stages = {**known.pop(key, {}), **{str(k): round(v, 4) for k, v in seconds_per_pass.items()}}
    known[key] = stages
    kept = dict(list(known.items())[-_KEPT_ENTRIES:])
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(), kept)
    except OSError:
        return False
    return True


def recall(bundle_hash: str, runner: str | None = None) -> MeasuredPasses | None:
    """Give what was last measured for a bundle, on one runner or on any; None where nothing was."""
    for key, stages in reversed(_read().items()):
        bundle, _, measured_on = key.partition("/")
        if bundle == bundle_hash and runner in {None, measured_on}:
            return MeasuredPasses(measured_on, {int(k): seconds for k, seconds in stages.items()})
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
