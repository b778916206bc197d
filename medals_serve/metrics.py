"""Figures for Prometheus, in its text format: a few counters and gauges of one process.

The format is a line a figure; the library of that name would add processes, registries and
histograms that nothing here needs.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_Name: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]

_HELP: Final = {
    "medals_requests_total": ("counter", "Requests by method, route and status."),
    "medals_jobs_total": ("counter", "Jobs that ended, by their last status."),
    "medals_job_seconds_total": ("counter", "Seconds that ended jobs ran."),
    "medals_uploaded_bytes_total": ("counter", "Bytes of uploads."),
    "medals_reader_failures_total": ("counter", "Processes of readers that crashed or were ended."),
    "medals_jobs_waiting": ("gauge", "Jobs in the queue."),
    "medals_jobs_running": ("gauge", "Whether a job runs."),
    "medals_sessions": ("gauge", "Sessions that are open."),
    "medals_disk_bytes": ("gauge", "Bytes that sessions hold on disk."),
    "medals_cases_bytes": ("gauge", "Bytes of images that are kept in memory."),
    "medals_kept_bytes": ("gauge", "Bytes that jobs left for later ones of the same image."),
    "medals_kept_hits_total": ("counter", "What jobs found of earlier ones."),
    "medals_kept_misses_total": ("counter", "What jobs looked for and made themselves."),
    "medals_kept_evictions_total": ("counter", "What made room for something else."),
}


class Metrics:
    """Figures of a running server; may be used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: defaultdict[_Name, float] = defaultdict(float)
        self._gauges: dict[str, Callable[[], float]] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name, tuple(sorted(labels.items()))] += amount

    def watch(self, gauges: Mapping[str, Callable[[], float]]) -> None:
        """Ask these functions for the gauges whenever figures are read."""
        self._gauges.update(gauges)

    def text(self) -> str:
        """Return all figures."""
        with self._lock:
            counts = sorted(self._counts.items())
        counts += [((name, ()), read()) for name, read in self._gauges.items()]
        lines = []
        for name, (kind, what) in _HELP.items():
            lines += [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
            for (found, labels), value in counts:
                if found == name:
                    inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
                    figure = repr(float(value)).removesuffix(".0")  # with all its digits
                    lines.append(f"{name}{{{inner}}} {figure}" if inner else f"{name} {figure}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
