"""What a session spares: the next text prompt and the next correction, against runs from nothing.

    python benchmarks/session_speed.py --scan lung2_image.nrrd

On the demo model, one thread: the demo's case, the same repeated along the body, chest and abdomen
and a whole trunk of a phantom (as many windows as the released model has there), and a scan of
yours. Each is asked for one class, then for another; then all classes are found and corrected:

- a stroke of the eraser in one organ of the result, as the page sends it: the smallest, the middle
  and the largest organ;
- the same in a result that was corrected before;
- a drawing of all classes that guided a run, with one stroke more.

Each is done at three places, in a session and from nothing, one after the other, three times (the
phantoms once); what a session answers is compared voxel by voxel with what a run from nothing
gives. Seconds are medians, of the three places together.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from reporting import today, write_report

import medals_rt
from demo_training.cases import CaseRecipe, make_case
from medals_rt.common.environment import machine_facts
from medals_rt.inference.corrections import Correction
from medals_rt.inference.kept import FeatureCache, KeptImage
from medals_rt.io.volume import Volume
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.prompts.prompt_set import read_prompts

HERE = Path(__file__).parent
DEMO = HERE.parent / "engines/demo"
CASE = DEMO / "cases/ct_anatomy.npz"
EDIT_MM = 15.0
"""Edge of the cube that is erased."""
DRAWN_AT = 0.1
STROKES_AT = (0.9, 0.5, 0.3)
"""Where something is erased: shares of the labels' voxels, from foot to head."""
BODY = CaseRecipe(3, extent_hwd_mm=(340.0, 420.0, 520.0), bottom_mm=-230.0)
BODY_SCALES = {"chest and abdomen": 4 / 3, "trunk": 16 / 9}
"""Of the phantom: windows are 256 mm for the demo's fine stage, 192 mm for the released one, which
has about as many of them in such a scan as the demo's has in a phantom so stretched."""

PROMPTS = (
    "scan",
    "first prompt",
    "second prompt: coarse",
    "times cheaper",
    "whole",
    "voxels that differ",
    "kept, MiB",
)
EDITS = (
    "scan",
    "windows",
    "a stroke in",
    "an edit",
    "from nothing",
    "share",
    "passes",
    "share",
    "voxels that differ",
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
    repeats: int = 3


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


@dataclass(frozen=True)
class Edit:
    """A correction in a session, and the same from nothing."""

    what: str
    found: Timed
    expected: Timed

    @property
    def passes(self) -> tuple[int, int]:
        """Passes that each took, of both stages."""
        found, expected = (
            sum(stage.passes for stage in each.result.report.stages)
            for each in (self.found, self.expected)
        )
        return found, expected


def figures(what: str, edits: Sequence[Edit]) -> dict[str, Any]:
    """Describe edits of one kind for the report."""
    spent, whole = (
        np.median([each.seconds for each in runs], axis=0).tolist()
        for runs in ([each.found for each in edits], [each.expected for each in edits])
    )
    passes, all_passes = np.mean([each.passes for each in edits], axis=0).tolist()
    return {
        "what": what,
        "seconds_cpu_and_clock": spent,
        "from_nothing_seconds_cpu_and_clock": whole,
        "share_of_seconds": round(spent[0] / whole[0], 3),
        "passes": round(passes, 1),
        "from_nothing_passes": round(all_passes, 1),
        "share_of_passes": round(passes / all_passes, 3),
        "windows": windows(edits[0].found.result),
        "from_nothing_windows": windows(edits[0].expected.result),
        "voxels_that_differ": sum(
            _differ(each.found.result, each.expected.result) for each in edits
        ),
    }


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
    firsts, seconds, edits = [], [], []
    for _ in range(scene.repeats):
        with cache.image() as kept:
            firsts.append(run(scene.first, kept=kept))
            seconds.append(run(scene.second, kept=kept))
            edits += correct(run, scene, kept)
            held = cache.bytes
    differ = _differ(seconds[-1].result, run(scene.second).result)
    first, second = (
        np.median([each.seconds for each in runs], axis=0).tolist() for runs in (firsts, seconds)
    )
    coarse = np.median([each.coarse for each in seconds], axis=0).tolist()
    return {
        "scan": scene.name,
        "shape_dhw": scene.volume.shape_dhw,
        "seconds_cpu_and_clock": {
            "first_prompt": first,
            "second_prompt_coarse": coarse,
            "second_prompt": second,
        },
        "times_coarse_answer_is_cheaper": round(first[0] / coarse[0], 1),
        "second_prompt_windows": windows(seconds[-1].result),
        "voxels_that_differ": differ,
        "edits": [
            figures(what, [each for each in edits if each.what == what])
            for what in dict.fromkeys(each.what for each in edits)
        ],
        "kept_mib": round(held / 2**20, 1),
    }


def correct(run: Callable[..., Timed], scene: Scene, kept: KeptImage) -> list[Edit]:
    """Find all classes, and correct them."""
    prompts, volume = scene.corrected, scene.volume

    def edited(what: str, **drawn: Any) -> Edit:
        found = run(prompts, kept=kept, **drawn)
        return Edit(what, found, run(prompts, **drawn))

    def stroke(labels: np.ndarray, label: int, at: float) -> Correction:
        organ = labels == label
        stays = erased(organ.astype(np.uint8), volume, at) > 0
        asked = [each.label for each in whole.report.classes]
        return Correction.of(labels, np.where(organ & ~stays, 0, labels), asked)

    whole = run(prompts, kept=kept).result
    labels = whole.labels_dhw
    found = organs(whole)
    edits = [
        edited(name, corrections=[stroke(labels, label, at)])
        for label, name in found
        for at in STROKES_AT
    ]
    first = stroke(labels, found[0][0], DRAWN_AT)
    corrected = run(prompts, kept=kept, corrections=[first]).result.labels_dhw
    edits += [
        edited("a corrected result", corrections=[first, stroke(corrected, label, at)])
        for (label, _), at in zip(found, STROKES_AT, strict=False)
    ]
    drawn = erased(labels, volume, DRAWN_AT)
    run(prompts, kept=kept, spatial_prompts=drawn)
    strokes = [erased(drawn, volume, at) for at in STROKES_AT]
    return edits + [edited("a drawing", spatial_prompts=each) for each in strokes]


def organs(result: Result) -> list[tuple[int, str]]:
    """Return the smallest, the middle and the largest organ that was found, by label and name."""
    found = sorted(
        (each for each in result.report.classes if each.voxels), key=lambda each: each.voxels
    )
    chosen = dict.fromkeys((0, len(found) // 2, len(found) - 1))
    return [(found[place].label, found[place].name) for place in chosen]


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
    arrays, body = make_case(BODY)
    asked = {label: text for label, text in body.items() if label.isdecimal()}
    for name, scale in BODY_SCALES.items():
        h, w, d = (mm * scale for mm in BODY.spacing_hwd_mm)
        volume = Volume(arrays["imgs"], (h, w, d), name=name)
        found.append(Scene(name, volume, liver, spleen, asked, options, repeats=1))
    if scan is not None:
        left, right = "Left lung in chest CT", "Right lung in chest CT"
        volume = medals_rt.read_case(scan).volume
        both = {"1": left, "2": right}
        found.append(Scene("chest CT", volume, {"1": left}, {"1": right}, both))
    return found


def table(report: dict[str, Any]) -> str:
    """Write the report for people."""
    prompts, edits = [], []
    for scan in report["scans"]:
        name = f"{scan['scan']}, {' x '.join(map(str, scan['shape_dhw']))}"
        seconds = scan["seconds_cpu_and_clock"]
        prompts.append(
            (
                name,
                _shown(seconds["first_prompt"]),
                _shown(seconds["second_prompt_coarse"]),
                f"{scan['times_coarse_answer_is_cheaper']:.0f}",
                _shown(seconds["second_prompt"]),
                scan["voxels_that_differ"],
                f"{scan['kept_mib']:.0f}",
            )
        )
        edits += [
            (
                scan["scan"],
                each["windows"]["fine"]["windows"],
                each["what"],
                _shown(each["seconds_cpu_and_clock"]),
                _shown(each["from_nothing_seconds_cpu_and_clock"]),
                f"{each['share_of_seconds']:.2f}",
                f"{each['passes']:.0f} of {each['from_nothing_passes']:.0f}",
                f"{each['share_of_passes']:.2f}",
                each["voxels_that_differ"],
            )
            for each in scan["edits"]
        ]
    return f"""# The next prompt and the next correction

{report["machine"]["processor"]}, one thread, {report["date"]}, {report["arithmetic"]}, load average
before {report["load_average_before"]}. Seconds of the processor, on the clock in brackets.
Repeat it: `python benchmarks/session_speed.py`.

{_rows(PROMPTS, prompts)}

A stroke in a result is shown to the windows that decide about it. Half of a window's passes are
spared where it is shown what it was shown before but for the stroke, and that lies in blocks of one
kind. A drawing that guided a run, sent again with a stroke more, is shown to all windows that hold
the stroke.

{_rows(EDITS, edits)}
"""


def _shown(seconds: Any) -> str:
    cpu, clock = seconds
    return f"{cpu:.3f} ({clock:.3f})"


def _rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = [columns, ["---:"] * len(columns)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [*head, *rows])


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
    others = round(os.getloadavg()[0], 1)
    with medals_rt.load(
        DEMO, runner=options.runner, precision=options.precision, threads=1
    ) as segmenter:
        report = {
            "date": today(),
            "machine": machine_facts(),
            "threads": 1,
            "load_average_before": others,
            "arithmetic": segmenter.arithmetic,
            "scans": [
                measure(segmenter, scene, options.cache)
                for scene in scenes(options.scan, options.repeats)
            ],
        }
    write_report(options.output, report, table(report))


if __name__ == "__main__":
    main()
