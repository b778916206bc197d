"""Cases whose classes want different CT windows: grouped, run apart, merged."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from medals_rt.common.errors import CaseError, InputError
from medals_rt.common.notes import Note
from medals_rt.inference.cascade import StageSummary
from medals_rt.io.volume import Volume
from medals_rt.pipeline.intensity_windows import (
    Pass,
    check_window,
    group_by_window,
    segment_by_window,
)
from medals_rt.pipeline.report import ClassSummary, RunReport
from medals_rt.pipeline.segmenter import Result
from medals_rt.prompts.prompt_set import PromptSet, numbered, parse_prompts

SHAPE = (4, 5, 6)
HU = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)
VOLUME = Volume(HU, (1.0, 1.0, 10.0))
ANATOMY = numbered(
    ("Liver in CT", "Left lung in CT", "Aorta in CT", "Right femur in CT"), "anatomy"
)


def report_of(one: Pass, seconds: float) -> RunReport:
    stage = StageSummary(
        "coarse", ((0, 0, 0), SHAPE), (1.0,) * 3, (1.0,) * 3, SHAPE, SHAPE, SHAPE, 1, 1, 0, "text"
    )  # fmt: skip
    classes = tuple(
        ClassSummary(
            p.label, p.text, "CT", p.class_key.kind, p.class_key.name, 1, "", one.window, 0, 0
        )
        for p in one.prompts.prompts
    )
    return RunReport(
        case="a",
        preset="paper",
        refinement="masked",
        seed=0,
        runner="r",
        runner_reason="",
        device="cpu",
        precision="fp32",
        bundle={},
        image={},
        intensities={"action": "window", "window": one.window},
        classes=classes,
        stages=(stage,),
        seconds={"prepare": seconds, "total": seconds},
        seconds_per_class=seconds,
        peak_memory_mib=seconds,
        notes=(Note("x", "shared"), Note("x", one.window)),
    )


class Passes:
    """A fake segmenter: gives prepared labels, and remembers what it was asked."""

    def __init__(self, **found: tuple[Any, Any]) -> None:
        self.found = found
        self.asked: list[Pass] = []

    def __call__(self, one: Pass) -> Result:
        self.asked.append(one)
        labels, probability = self.found[one.window.replace(" ", "_")]
        lesion = one.prompts.kind == "lesion"
        instances = (labels > 0).astype(np.uint32) * 2 if lesion else None
        if one.progress is not None:
            one.progress("coarse", 1, 2)
        return Result(
            labels, instances, {"coarse": labels}, report_of(one, len(self.asked)), probability
        )


def blocks(label: int, depth: slice, probability: float) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros(SHAPE, np.uint8)
    labels[depth] = label
    return labels, np.where(labels > 0, np.float32(probability), np.float32(0.2))


def test_classes_are_grouped_by_the_window_they_want() -> None:
    groups = group_by_window(VOLUME, ANATOMY, "auto")
    assert {name: group.labels for name, group in groups.items()} == {
        "soft tissue": (1, 3),
        "lung": (2,),
        "bone": (4,),
    }


@pytest.mark.parametrize(
    ("volume", "prompts", "window"),
    [
        (VOLUME, ANATOMY, "lung"),
        (VOLUME, ANATOMY, "400,40"),
        (VOLUME, numbered(("Liver in CT", "Aorta in CT"), "anatomy"), "auto"),
        (VOLUME, numbered(("Liver in MRI", "Left lung in MRI"), "anatomy"), "auto"),
        (Volume(abs(HU) // 4, (1.0, 1.0, 1.0)), ANATOMY, "auto"),
    ],
)
def test_one_pass_where_one_is_enough(volume: Volume, prompts: PromptSet, window: str) -> None:
    assert group_by_window(volume, prompts, window) == {window: prompts}
    given = blocks(1, slice(0, 2), 0.9)
    passes = Passes(**{window.replace(" ", "_"): given})
    result = segment_by_window(volume, prompts, window, None, None, passes)
    assert len(passes.asked) == 1
    assert not passes.asked[0].keep_probability
    assert result.labels_dhw is given[0]
    assert result.report == replace(report_of(passes.asked[0], 1), machine=result.report.machine)


def test_the_likelier_class_keeps_a_contested_voxel() -> None:
    passes = Passes(
        soft_tissue=blocks(1, slice(0, 2), 0.7),
        lung=blocks(2, slice(1, 3), 0.9),
        bone=blocks(4, slice(2, 4), 0.8),
    )
    heard: list[str] = []
    result = segment_by_window(
        VOLUME, ANATOMY, "auto", None, lambda name, *_: heard.append(name), passes
    )
    assert result.labels_dhw[:, 0, 0].tolist() == [1, 2, 2, 4]
    assert heard == ["soft tissue: coarse", "lung: coarse", "bone: coarse"]
    assert set(result.stage_labels_dhw) == set(heard)
    report = result.report
    assert [stage.name for stage in report.stages] == heard
    assert [(each.label, each.voxels) for each in report.classes] == [
        (1, 30), (2, 60), (3, 0), (4, 30),
    ]  # fmt: skip
    assert [each.embedding for each in report.classes] == [
        "soft tissue", "lung", "soft tissue", "bone",
    ]  # fmt: skip
    assert report.classes[1].volume_ml == pytest.approx(0.6)
    assert report.seconds == {
        "soft tissue: prepare": 1,
        "lung: prepare": 2,
        "bone: prepare": 3,
        "total": 6,
    }
    assert report.seconds_per_class == 1.5
    assert report.peak_memory_mib == 3
    assert report.intensities["action"] == "windows"
    assert report.intensities["windows"][1] == {"action": "window", "window": "lung", "labels": [2]}
    assert report.intensities["contested_voxels"] == 60
    assert (
        "run once for each (soft tissue for labels 1, 3; lung for labels 2" in report.notes[0].text
    )
    assert [note.text for note in report.notes[1:]] == ["shared", "soft tissue", "lung", "bone"]


def test_instances_are_numbered_on() -> None:
    lesions = parse_prompts(
        {"1": "Liver tumors in CT", "2": "Lung lesions in CT"} | {"instance_label": 1}
    )
    passes = Passes(soft_tissue=blocks(1, slice(0, 2), 0.7), lung=blocks(2, slice(1, 3), 0.6))
    result = segment_by_window(VOLUME, lesions, "auto", None, None, passes)
    assert result.labels_dhw[:, 0, 0].tolist() == [1, 1, 2, 0]
    assert result.instances_dhw is not None
    assert result.instances_dhw[:, 0, 0].tolist() == [2, 2, 4, 0]
    assert result.instances_dhw.dtype == np.uint32
    assert [each.components for each in result.report.classes] == [1, 1]


def test_each_pass_gets_its_part_of_an_annotation() -> None:
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[0], drawn[1] = 1, 2
    found = {
        name: blocks(label, slice(0, 1), 0.9)
        for name, label in (("soft_tissue", 1), ("lung", 2), ("bone", 4))
    }
    passes = Passes(**found)
    segment_by_window(VOLUME, ANATOMY, "auto", drawn, None, passes)
    soft, lung, bone = (one.annotation_dhw for one in passes.asked)
    assert soft is not None
    assert np.array_equal(soft, np.where(drawn == 1, drawn, 0))
    assert lung is not None
    assert np.array_equal(lung, np.where(drawn == 2, drawn, 0))
    assert bone is None
    with pytest.raises(CaseError, match="no prompt names"):
        segment_by_window(VOLUME, ANATOMY, "auto", drawn * 3, None, passes)


@pytest.mark.parametrize(
    ("window", "modality", "message"),
    [
        ("lungs", "CT", "no window is called 'lungs'"),
        ("1,2,3", "CT", "WIDTH,LEVEL"),
        ("0,40", "CT", "width above 0"),
        ("nan,40", "CT", "finite"),
        ("lung", "MRI", "Hounsfield units, but the prompts say MRI"),
    ],
)
def test_unusable_windows_are_refused(window: str, modality: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_window(window, modality)


@pytest.mark.parametrize(("window", "modality"), [("auto", "MRI"), ("bone", "CT"), ("9,3", "PET")])
def test_usable_windows_are_taken(window: str, modality: str) -> None:
    check_window(window, modality)
