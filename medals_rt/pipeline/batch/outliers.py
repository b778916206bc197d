"""Cases whose volume of a class is unlike that of the others: worth a look before they are used."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from medals_rt.pipeline.batch.records import Entry

FEWEST_CASES: Final = 8
"""Of fewer cases nothing is said."""
LIMIT: Final = 3.5
"""Modified z-score above which a value is an outlier (Iglewicz and Hoaglin, 1993)."""
_SMALLEST_SPREAD: Final = 0.05
"""Of logarithms, so that classes of nearly equal volume have no outliers within some percent."""


def volume_outliers(entries: Sequence[Entry]) -> Mapping[tuple[int, int], float]:
    """Return modified z-scores of volumes that are outliers among the cases where a class is found.

    The logarithms of the volumes are compared by their median and median absolute deviation, class
    by class (name), which a few wrong cases don't move.

    Parameters
    ----------
    entries
        Cases.

    Returns
    -------
    mapping
        From the places of a case in `entries` and of a class in its `classes` to the score;
        negative for small volumes.
    """
    volumes: dict[str, list[tuple[int, int, float]]] = {}
    for case, entry in enumerate(entries):
        for place, found in enumerate(entry.classes):
            if found.volume_ml > 0:
                volumes.setdefault(found.name, []).append((case, place, found.volume_ml))
    scores: dict[tuple[int, int], float] = {}
    for rows in volumes.values():
        if len(rows) < FEWEST_CASES:
            continue
        logs = np.log([volume for _, _, volume in rows])
        away = logs - np.median(logs)
        spread = max(1.4826 * float(np.median(np.abs(away))), _SMALLEST_SPREAD)
        for number in np.flatnonzero(np.abs(away) > LIMIT * spread):
            case, place, _ = rows[number]
            scores[case, place] = round(float(away[number] / spread), 1)
    return scores
