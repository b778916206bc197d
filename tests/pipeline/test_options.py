"""What a run is asked for."""

from collections.abc import Callable
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medals_rt.cli._options import run_options
from medals_rt.common.errors import InputError, PromptError
from medals_rt.pipeline.options import (
    PromptSource,
    RunOptions,
    SegmentOptions,
    idle_in_plans,
    idle_options,
)
from medals_rt.planning.policy import Preset, load_policy
from medals_rt.prompts.prompt_set import PLAIN_READING, PromptReading


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"preset": "book"}, "preset-unknown"),
        ({"refinement": "blurred"}, "refinement-unknown"),
        ({"time_budget": 0.0}, "time-budget-out-of-range"),
        ({"max_memory": -1}, "max-memory-out-of-range"),
        ({"classes_per_chunk": 0}, "classes-per-chunk-out-of-range"),
        ({"time_budget": float("inf")}, "time-budget-out-of-range"),
        ({"stages": "first"}, "stages-unknown"),
        ({"start_from": "zeros"}, "start-from-unknown"),
        ({"seed": -1}, "seed-out-of-range"),
        ({"iterations": 0}, "iterations-out-of-range"),
        ({"repetitions": 101}, "repetitions-out-of-range"),
        ({"lesion_iterations": -1}, "lesion-iterations-out-of-range"),
        ({"block_sizes": ()}, "block-sizes-out-of-range"),
        ({"block_sizes": (4, 0)}, "block-sizes-out-of-range"),
        ({"block_sizes": (4, 100_000)}, "block-sizes-out-of-range"),
        ({"threshold": 1.0}, "threshold-out-of-range"),
        ({"threshold": float("nan")}, "threshold-out-of-range"),
        ({"overlap": 0.95}, "overlap-out-of-range"),
    ],
)
def test_unusable_options_are_refused_where_they_are_made(given: dict[str, Any], code: str) -> None:
    with pytest.raises(InputError) as caught:
        SegmentOptions(**given)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "given",
    [
        {"seed": "a"},
        {"iterations": 1.5},
        {"threshold": "0.5"},
        {"mirrored": "no"},
        {"block_sizes": 4},
        {"block_sizes": (4.5,)},
        {"max_memory": "4GB"},
        {"time_budget": "10"},
        {"iterations": True},
        {"probabilities": "no"},
        {"keep_probability": 1},
    ],
)
def test_options_of_a_wrong_type(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(given))):
        SegmentOptions(**given)


def test_options_are_kept_as_pythons_own() -> None:
    """So that they can be compared, hashed, and written as JSON."""
    given = SegmentOptions(
        seed=np.int64(3),  # type: ignore[arg-type]
        block_sizes=[np.int32(4), 8],  # type: ignore[arg-type]
        threshold=np.float32(0.5),  # type: ignore[arg-type]
        mirrored=np.bool_(True),  # type: ignore[arg-type]
    )
    plain = SegmentOptions(seed=3, block_sizes=(4, 8), threshold=0.5, mirrored=True)
    assert given == plain
    assert hash(given) == hash(plain)
    assert RunOptions(segment=given).deciding() == RunOptions(segment=plain).deciding()
    source = PromptSource(sentences=["Liver in CT"])  # type: ignore[arg-type]
    assert source == PromptSource(sentences=("Liver in CT",))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RunOptions(segment={"seed": 7}), "SegmentOptions"),
        (lambda: RunOptions(reading="CT"), "PromptReading"),
        (lambda: RunOptions(threads="2"), "threads"),
        (lambda: PromptSource(sentences="Liver in CT"), "sentences"),
    ],
)
def test_arguments_of_a_wrong_type(make: Callable[[], object], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        make()


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: RunOptions(runner="openvin"), "runner-unknown"),
        (lambda: RunOptions(precision="FP32"), "precision-unknown"),
        (lambda: RunOptions(convolution="Direct"), "convolution-unknown"),
        (lambda: RunOptions(threads=0), "threads-out-of-range"),
        (lambda: PromptSource(kind="organ"), "kind-unknown"),
    ],
)
def test_unusable_arguments_are_refused_at_once(make: Callable[[], object], code: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.code == code


def test_a_window_is_a_text() -> None:
    with pytest.raises(TypeError, match="WIDTH,LEVEL"):
        SegmentOptions(window=(400, 40))  # type: ignore[arg-type]


def test_only_what_can_change_a_result_decides() -> None:
    def deciding(**options: Any) -> Any:
        return RunOptions(segment=SegmentOptions(**options)).deciding()

    for changes in (
        {"stages": "fine"},
        {"threshold": 0.4},
        {"seed": 1},
        {"window": "lung"},
        {"preset": "release"},
        {"time_budget": 9.0},
    ):
        assert deciding(**changes) != deciding()
    for keeps in ({"max_memory": 10**9}, {"classes_per_chunk": 3}, {"keep_probability": True}):
        assert deciding(**keeps) == deciding()


def test_auto_is_what_nothing_asked_for_is() -> None:
    """Else results of a program would be made again for the command line."""
    assert RunOptions(precision="auto") == RunOptions()
    assert RunOptions(precision="auto").deciding() == RunOptions().deciding()


def test_where_prompts_come_from(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text('{"5": "Liver in abdominal CT"}', encoding="utf-8")
    lesions = ("Liver tumors",)
    for source, labels in {
        PromptSource(file): (5,),
        PromptSource(file, lesions=lesions): (5, 6),
        PromptSource(sentences=("Liver in CT", "Spleen in CT"), lesions=lesions): (1, 2, 3),
        PromptSource(lesions=("Liver tumors in CT",)): (1,),
    }.items():
        found = source.read(PLAIN_READING)
        assert found is not None
        assert found.labels == labels
        assert (found.class_keys[-1].kind == "lesion") is bool(source.lesions)
    assert PromptSource().read(PLAIN_READING) is None
    with pytest.raises(PromptError) as caught:
        PromptSource(file, ("Liver in CT",)).read(PLAIN_READING)
    assert caught.value.code == "prompts-twice"
    with pytest.raises(PromptError) as caught:
        PromptSource(sentences=("Liver tumors in CT",), kind="lesion", lesions=lesions).read(
            PLAIN_READING
        )
    assert caught.value.code == "kinds-not-combinable"


def test_every_option_has_its_places() -> None:
    """A new one is forgotten in none: in the preset, and on the command line."""
    replacing = {each.name for each in fields(SegmentOptions) if "of_preset" in each.metadata}
    assert replacing == {*signature(Preset.changed).parameters} - {"self"}
    deciding = {*RunOptions().deciding()["segment"]}
    assert deciding - {*signature(run_options).parameters} == {"mirrored"}  # --mirror


def test_options_replace_values_of_the_preset() -> None:
    assert SegmentOptions().algorithm == load_policy().preset("paper")
    native = SegmentOptions(preset="native").algorithm
    assert (native.stages, native.further.iterations) == ("fine", 0)
    changed = SegmentOptions(
        preset="native",
        stages="both",
        start_from="text",
        iterations=2,
        repetitions=3,
        block_sizes=(4, 16),
        lesion_iterations=4,
        threshold=0.25,
        overlap=0.0,
        mirrored=True,
    ).algorithm
    assert changed.values() == {
        "stages": "both",
        "start_from": "text",
        "iterations": 2,
        "repetitions": 3,
        "block_sizes": [4, 16],
        "lesion_iterations": 4,
        "lesion_block_sizes": [4, 16],
        "threshold": 0.25,
        "overlap": 0.0,
        "mirrored": True,
    }
    assert (changed.name, changed.merge, changed.resampling) == (
        "native",
        "larger label",
        native.resampling,
    )


def test_groups_need_a_modality_and_follow_sentences() -> None:
    source = PromptSource(sentences=("spleen",), groups=("kidneys",), lesions=("liver tumor",))
    with pytest.raises(PromptError) as caught:
        PromptSource(groups=("kidneys",)).read(PLAIN_READING)
    assert caught.value.code == "modality-missing"
    found = source.read(PromptReading("CT"))
    assert found is not None
    assert [key.name for key in found.class_keys] == [
        *("Spleen", "Right kidney", "Left kidney", "Left kidney cyst", "Right kidney cyst"),
        "Liver tumors",
    ]
    assert found.labels == (1, 2, 3, 4, 5, 6)


def test_a_sentence_names_the_modality_of_groups() -> None:
    found = PromptSource(sentences=("spleen on MRI",), groups=("kidneys",)).read(PLAIN_READING)
    assert found is not None
    assert found.modality == "MRI"


def test_everything_is_what_the_model_covers() -> None:
    covered = {"CT/anatomy/1", "CT/anatomy/2", "MRI/anatomy/1"}
    found = PromptSource(sentences=("spleen in CT",), everything=True).read(PLAIN_READING, covered)
    assert found is not None
    assert [key.bank_key for key in found.class_keys] == [
        found.class_keys[0].bank_key,
        "CT/anatomy/1",
        "CT/anatomy/2",
    ]
    assert {note.code for note in found.notes} == {"other-kind-left-out", "classes-not-covered"}


@pytest.mark.parametrize(
    ("given", "kinds", "named"),
    [
        ({}, ("anatomy",), ""),
        ({"seed": 3, "iterations": 2}, ("anatomy",), ""),
        ({"lesion_iterations": 2}, ("lesion",), ""),
        ({"lesion_iterations": 2}, ("anatomy",), "--lesion-iterations changes"),
        ({"postprocess": "all"}, ("lesion",), "--postprocess changes"),
        ({"postprocess": "all"}, ("anatomy", "lesion"), ""),
        ({"refinement": "unmasked", "seed": 3}, ("anatomy",), "--seed changes"),
        (
            {"refinement": "unmasked", "block_sizes": (4,), "repetitions": 2},
            ("anatomy",),
            "--block-sizes and --repetitions change ",
        ),
        ({"refinement": "none", "iterations": 2}, ("anatomy",), "--iterations changes"),
    ],
)
def test_options_that_change_nothing_are_noted(
    given: dict[str, Any], kinds: tuple[str, ...], named: str
) -> None:
    notes = idle_options(SegmentOptions(**given), kinds)
    assert [note.code for note in notes] == ["option-without-effect"] * bool(named)
    assert "".join(note.text for note in notes).startswith(named)


def test_options_that_a_plan_does_not_depend_on_are_noted() -> None:
    def named(*, threads: int | None = None, **given: Any) -> list[str]:
        options = RunOptions(threads=threads, segment=SegmentOptions(**given))
        return [note.text.partition(" change")[0] for note in idle_in_plans(options, ("anatomy",))]

    assert named(threshold=0.3, seed=1, overlap=0.2) == ["--seed and --threshold"]
    assert named(refinement="none", seed=1, iterations=3) == ["--seed", "--iterations"]
    assert named(lesion_iterations=3, threads=1) == ["--threads", "--lesion-iterations"]
    assert named(overlap=0.2) == []
