"""What a session spares: the next text prompt and the next correction, against runs from nothing.

    python benchmarks/session_speed.py --scan lung2_image.nrrd

On the demo model, one thread: the demo's case, the same repeated along the body (a scan of many
windows, few of which an edit touches), and a scan of yours. Each is asked for one class, then for
another; then the result is corrected in one place, and in another. What a session answers is
compared voxel by voxel with what a run from nothing gives.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from reporting import today, write_report

import medals_rt
from medals_rt.common.environment import machine_facts
from medals_rt.inference.kept import FeatureCache
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.prompts.prompt_set import read_prompts

HERE = Path(__file__).parent
DEMO = HERE.parent / "engines/demo"
CASE = DEMO / "cases/ct_anatomy.npz"
EDIT_MM = 15.0
"""Edge of the cube that is erased."""

COLUMNS = (
    "scan",
    "first prompt",
    "second prompt: coarse",
    "times cheaper",
    "whole",
    "an edit",
    "from nothing",
    "share",
    "passes for the edit",
    "voxels that differ",
    "kept, MiB",
)

Seconds = tuple[float, float]
"""Of the processor and on the clock."""


@dataclass(frozen=True)
class Scene:
    """A scan, and what is asked of it: one class, another, and those that are corrected."""

    name: str
    volume: Volume
    first: dict[str, str]
    second: dict[str, str]
    corrected: Any
    options: SegmentOptions = field(default_factory=SegmentOptions)


@dataclass
class Timed:
    """A run: how long it took, and when its coarse labels were there."""

    result: Result
    seconds: Seconds
    coarse: Seconds | None


def timed(run: Callable[..., Result]) -> Timed:
    """Run and take the time."""
    marks: list[Seconds] = []

    def mark(_: object = None) -> None:
        marks.append((time.process_time(), time.perf_counter()))

    mark()
    result = run(on_coarse=mark)
    mark()
    spans = [(mark[0] - marks[0][0], mark[1] - marks[0][1]) for mark in marks[1:]]
    return Timed(result, spans[-1], spans[0] if len(spans) > 1 else None)


def erased(labels: np.ndarray, volume: Volume, at: float) -> np.ndarray:
    """Erase a small cube inside the labels, at a share of their voxels from foot to head."""
    drawn = labels.copy()
    voxels = np.argwhere(drawn)
    middle = voxels[int(at * len(voxels))]
    drawn[
        tuple(
            slice(max(0, x - round(EDIT_MM / mm / 2)), x + max(1, round(EDIT_MM / mm / 2)))
            for x, mm in zip(middle, volume.spacing_dhw_mm, strict=True)
        )
    ] = 0
    return drawn


def windows(result: Result) -> dict[str, dict[str, int]]:
    """How many windows each stage had, how many needed no pass, and how many passes were made."""
    return {
        stage.name: {
            "windows": stage.windows,
            "windows_kept": stage.windows_kept,
            "passes": stage.passes,
        }
        for stage in result.report.stages
    }


def measure(segmenter: Segmenter, scene: Scene, cache_bytes: int) -> dict[str, Any]:
    """Run a scene in a session and from nothing."""

    def run(prompts: Any, **more: Any) -> Timed:
        return timed(
            lambda **on: segmenter.segment(scene.volume, prompts, scene.options, **more, **on)
        )

    run(scene.first)  # opens graphs
    cache = FeatureCache(cache_bytes)
    with cache.image() as kept:
        first = run(scene.first, kept=kept)
        second = run(scene.second, kept=kept)
        whole = run(scene.corrected, kept=kept)
        drawn = erased(whole.result.labels_dhw, scene.volume, 0.1)
        edit = run(scene.corrected, kept=kept, spatial_prompts=drawn)
        again = erased(drawn, scene.volume, 0.9)
        next_edit = run(scene.corrected, kept=kept, spatial_prompts=again)
        held = cache.bytes
    from_nothing = run(scene.second)
    edit_from_nothing = run(scene.corrected, spatial_prompts=again)
    differ = {
        "second_prompt": _differ(second.result, from_nothing.result),
        "edit": _differ(next_edit.result, edit_from_nothing.result),
    }
    coarse = second.coarse
    if coarse is None:
        raise AssertionError("no fine stage followed")
    return {
        "scan": scene.name,
        "shape_dhw": scene.volume.shape_dhw,
        "seconds_cpu_and_clock": {
            "first_prompt": first.seconds,
            "second_prompt_coarse": coarse,
            "second_prompt": second.seconds,
            "first_edit": edit.seconds,
            "edit": next_edit.seconds,
            "edit_from_nothing": edit_from_nothing.seconds,
        },
        "times": {
            "coarse_answer_cheaper_than_first_prompt": round(first.seconds[0] / coarse[0], 1),
            "edit_share_of_whole_run": round(
                next_edit.seconds[0] / edit_from_nothing.seconds[0], 3
            ),
        },
        "second_prompt_windows": windows(second.result),
        "edit_windows": windows(next_edit.result),
        "edit_from_nothing_windows": windows(edit_from_nothing.result),
        "voxels_that_differ": differ,
        "kept_mib": round(held / 2**20, 1),
    }


def _differ(found: Result, expected: Result) -> int:
    count = int(np.count_nonzero(found.labels_dhw != expected.labels_dhw))
    for name, labels in expected.stage_labels_dhw.items():
        count += int(np.count_nonzero(found.stage_labels_dhw[name] != labels))
    return count


def scenes(scan: Path | None, repeats: int) -> list[Scene]:
    """List what is measured."""
    case = medals_rt.read_case(CASE)
    prompts = read_prompts(CASE.with_name("ct_anatomy.prompts.json"))
    liver, spleen = {"1": "Liver in CT"}, {"1": "Spleen in CT"}
    options = SegmentOptions(window="soft tissue")
    found = [Scene("demo case", case.volume, liver, spleen, prompts, options)]
    if repeats > 1:
        image = np.concatenate([case.volume.image_dhw] * repeats)
        volume = replace(case.volume, image_dhw=image, name="repeated")
        found.append(Scene(f"demo case, {repeats} times", volume, liver, spleen, prompts, options))
    if scan is not None:
        left, right = "Left lung in chest CT", "Right lung in chest CT"
        volume = medals_rt.read_case(scan).volume
        both = {"1": left, "2": right}
        found.append(Scene("chest CT", volume, {"1": left}, {"1": right}, both))
    return found


def table(report: dict[str, Any]) -> str:
    """Write the report for people."""
    lines = [
        f"{report['machine']['processor']}, one thread, {report['date']}, {report['arithmetic']}.",
        "Seconds of the processor, on the clock in brackets.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for each in report["scans"]:
        seconds = {
            name: f"{cpu:.3f} ({clock:.3f})"
            for name, (cpu, clock) in each["seconds_cpu_and_clock"].items()
        }
        fine = each["edit_windows"]["fine"]
        whole = each["edit_from_nothing_windows"]["fine"]
        cells = [
            f"{each['scan']}, {' x '.join(map(str, each['shape_dhw']))}",
            seconds["first_prompt"],
            seconds["second_prompt_coarse"],
            f"{each['times']['coarse_answer_cheaper_than_first_prompt']:.0f}",
            seconds["second_prompt"],
            seconds["edit"],
            seconds["edit_from_nothing"],
            f"{each['times']['edit_share_of_whole_run']:.2f}",
            f"{fine['passes']} of {whole['passes']}",
            str(sum(each["voxels_that_differ"].values())),
            f"{each['kept_mib']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", type=Path, help="a chest CT, in any format")
    parser.add_argument("--repeats", type=int, default=6, help="of the demo's case; 1: once only")
    parser.add_argument("--runner", default="auto")
    parser.add_argument("--precision")
    parser.add_argument("--cache", type=int, default=4 * 2**30, help="bytes")
    parser.add_argument("--output", type=Path, default=HERE / "results/session_speed")
    options = parser.parse_args()
    with medals_rt.load(
        DEMO, runner=options.runner, precision=options.precision, threads=1
    ) as segmenter:
        report = {
            "date": today(),
            "machine": machine_facts(),
            "threads": 1,
            "arithmetic": segmenter.arithmetic,
            "scans": [
                measure(segmenter, scene, options.cache)
                for scene in scenes(options.scan, options.repeats)
            ],
        }
    write_report(options.output, report, table(report))


if __name__ == "__main__":
    main()
