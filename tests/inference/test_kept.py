"""What is kept between runs: bytes, room, owners. Runs that use it, and runs from nothing."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import medals_rt
from medals_rt.bundle.bundle import Bundle
from medals_rt.inference.kept import FeatureCache, KeptImage, digest_of
from medals_rt.io.volume import Volume
from medals_rt.pipeline.group_run import CoarseLabels
from medals_rt.pipeline.options import SegmentOptions
from medals_rt.pipeline.segmenter import Result, Segmenter
from medals_rt.runners.selection import precisions
from tests.inference.noise import volume_of

FIRST = {"1": "Liver in abdominal CT"}
SECOND = {"1": "Right kidney in abdominal CT"}
BOTH = {**FIRST, "4": SECOND["1"]}
PLENTY = 2**26

VOLUME = volume_of(11)


@pytest.fixture(
    scope="module",
    params=[("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")],
    ids="-".join,
)
def segmenter(request: pytest.FixtureRequest, tiny_bundle: Bundle) -> Iterator[Segmenter]:
    runner, precision = request.param
    if precision not in precisions(runner):
        pytest.skip(f"this processor has no {precision} arithmetic")
    with medals_rt.load(
        tiny_bundle.folder, runner=runner, precision=precision, threads=1
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(tiny_bundle: Bundle) -> Iterator[Segmenter]:
    with medals_rt.load(
        tiny_bundle.folder, runner="onnxruntime", precision="fp32", threads=1
    ) as opened:
        yield opened


def passes(result: Result) -> list[tuple[int, int]]:
    """Passes that were made and windows that needed none, by stage."""
    return [(stage.passes, stage.windows_kept) for stage in result.report.stages]


def assert_same(found: Result, expected: Result) -> None:
    assert expected.labels_dhw.any()
    np.testing.assert_array_equal(found.labels_dhw, expected.labels_dhw)
    for stage, labels in expected.stage_labels_dhw.items():
        np.testing.assert_array_equal(found.stage_labels_dhw[stage], labels)


# Runs against runs from nothing -------------------------------------------------------------------


def test_the_next_text_finds_the_features_of_every_window(segmenter: Segmenter) -> None:
    with FeatureCache(PLENTY).image() as kept:
        first = segmenter.segment(VOLUME, FIRST, kept=kept)
        second = segmenter.segment(VOLUME, SECOND, kept=kept)
    assert_same(first, segmenter.segment(VOLUME, FIRST))
    assert_same(second, segmenter.segment(VOLUME, SECOND))
    coarse = first.report.stages[0].windows
    assert passes(first)[0] == (coarse, 0)
    assert passes(second)[0] == (0, coarse)


def whole_annotation() -> npt.NDArray[np.uint8]:
    """Drawn labels that reach from end to end."""
    drawn = np.zeros(VOLUME.shape_dhw, np.uint8)
    drawn[0, 0, 0] = drawn[-1, -1, -1] = 1
    drawn[2:6, 8:14, 6:14] = 1
    drawn[3:5, 9:12, 6:14] = 4
    return drawn


@pytest.mark.parametrize("options", [SegmentOptions(), SegmentOptions(refinement="unmasked")])
def test_an_edit_runs_the_windows_that_it_touches(
    segmenter: Segmenter, options: SegmentOptions
) -> None:
    drawn = whole_annotation()
    corrected = drawn.copy()
    corrected[1, 1, 1] = 1
    with FeatureCache(PLENTY).image() as kept:
        first = segmenter.segment(VOLUME, BOTH, options, spatial_prompts=drawn, kept=kept)
        again = segmenter.segment(VOLUME, BOTH, options, spatial_prompts=drawn, kept=kept)
        edit = segmenter.segment(VOLUME, BOTH, options, spatial_prompts=corrected, kept=kept)
    nothing = segmenter.segment(VOLUME, BOTH, options, spatial_prompts=corrected)
    windows = first.report.stages[-1].windows
    assert windows > 2
    assert_same(again, first)
    assert passes(again)[-1] == (0, windows)
    assert_same(edit, nothing)
    made, found = passes(edit)[-1]
    assert 0 < windows - found < windows / 2
    assert made < passes(nothing)[-1][0] / 2


@pytest.mark.parametrize(
    "options",
    [
        SegmentOptions(start_from="text"),
        SegmentOptions(iterations=2, repetitions=2),
        SegmentOptions(mirrored=True),
        SegmentOptions(refinement="none"),
        SegmentOptions(stages="fine"),
        SegmentOptions(classes_per_chunk=1),
        SegmentOptions(preset="release"),
    ],
    ids=["text", "pairs", "mirrored", "none", "fine", "chunks", "release"],
)
def test_every_way_of_running_a_window_gives_the_same(
    plain: Segmenter, options: SegmentOptions
) -> None:
    expected = plain.segment(VOLUME, BOTH, options)
    with FeatureCache(PLENTY).image() as kept:
        for _ in range(2):
            found = plain.segment(VOLUME, BOTH, options, kept=kept)
            assert_same(found, expected)
    assert sum(count for _, count in passes(found)) > 0


def test_lesions_are_iterated_from_what_is_kept(plain: Segmenter) -> None:
    lesions = {"7": "Adrenocortical carcinoma in abdominal CT", "instance_label": 1}
    options = SegmentOptions(threshold=0.05)
    expected = plain.segment(VOLUME, lesions, options)
    with FeatureCache(PLENTY).image() as kept:
        for _ in range(2):
            found = plain.segment(VOLUME, lesions, options, kept=kept)
            assert_same(found, expected)
    assert passes(found)[0] == (0, found.report.stages[0].windows)


@pytest.mark.parametrize(
    "changed",
    [
        {"overlap": 0.25},
        {"seed": 5},
        {"block_sizes": (4,)},
        {"window": "lung"},
        {"refinement": "unmasked"},
    ],
    ids=str,
)
def test_options_that_change_a_window_find_nothing_of_it(
    plain: Segmenter, changed: dict[str, Any]
) -> None:
    volume = replace(
        VOLUME, image_dhw=VOLUME.image_dhw.astype(np.int16) * 4 - 500, geometry_is_stated=True
    )
    drawn, options = whole_annotation(), SegmentOptions(**changed)
    with FeatureCache(PLENTY).image() as kept:
        plain.segment(volume, BOTH, spatial_prompts=drawn, kept=kept)
        found = plain.segment(volume, BOTH, options, spatial_prompts=drawn, kept=kept)
    expected = plain.segment(volume, BOTH, options, spatial_prompts=drawn)
    assert_same(found, expected)
    prompted = [stage for stage in found.report.stages if "spatial" in stage.prompts]
    assert prompted
    assert all(stage.windows_kept == 0 or stage.passes > 0 for stage in prompted)
    assert passes(found)[-1][0] > 0


def test_two_images_do_not_mix(plain: Segmenter) -> None:
    """Not in one cache, and not even under one name."""
    other = volume_of(12)
    cache = FeatureCache(PLENTY)
    with cache.image() as kept, cache.image() as kept_other:
        plain.segment(VOLUME, FIRST, kept=kept)
        for handle in (kept_other, kept):
            found = plain.segment(other, FIRST, kept=handle)
            assert_same(found, plain.segment(other, FIRST))
            assert passes(found)[0][1] == 0


def test_what_one_segmenter_keeps_is_not_another_ones(tiny_bundle: Bundle) -> None:
    with FeatureCache(PLENTY).image() as kept:
        for _ in range(2):
            with medals_rt.load(
                tiny_bundle.folder, runner="onnxruntime", precision="fp32", threads=1
            ) as opened:
                assert passes(opened.segment(VOLUME, FIRST, kept=kept))[0][1] == 0


def test_a_run_that_was_canceled_leaves_what_it_finished(plain: Segmenter) -> None:
    class CanceledError(Exception):
        pass

    def cancel_in(wanted: str, windows: int) -> Any:
        def progress(stage: str, done: int, total: int) -> None:
            del total
            if stage == wanted and done >= windows:
                raise CanceledError

        return progress

    drawn = whole_annotation()
    cache = FeatureCache(PLENTY)
    with cache.image() as kept:
        for windows in (1, 2):
            with pytest.raises(CanceledError):
                plain.segment(
                    VOLUME,
                    BOTH,
                    spatial_prompts=drawn,
                    kept=kept,
                    progress=cancel_in("fine", windows),
                )
        found = plain.segment(VOLUME, BOTH, spatial_prompts=drawn, kept=kept)
        assert cache.bytes == sum(each.size for each in cache._entries.values()) > 0
    assert_same(found, plain.segment(VOLUME, BOTH, spatial_prompts=drawn))
    assert passes(found)[-1][1] == 2
    assert (cache.bytes, len(cache)) == (0, 0)


@pytest.mark.parametrize("max_bytes", [0, 10_000, 60_000, 300_000])
def test_little_room_changes_no_label_and_is_kept(plain: Segmenter, max_bytes: int) -> None:
    cache, drawn = FeatureCache(max_bytes), whole_annotation()
    with cache.image() as kept:
        for prompts in (FIRST, SECOND, FIRST):
            assert_same(plain.segment(VOLUME, prompts, kept=kept), plain.segment(VOLUME, prompts))
            assert cache.bytes <= max_bytes
        expected = plain.segment(VOLUME, BOTH, spatial_prompts=drawn)
        for _ in range(2):
            assert_same(plain.segment(VOLUME, BOTH, spatial_prompts=drawn, kept=kept), expected)
            assert cache.bytes <= max_bytes
    assert cache.bytes == 0


def test_a_time_budget_keeps_no_windows(plain: Segmenter) -> None:
    options = SegmentOptions(time_budget=1000.0)
    with FeatureCache(PLENTY).image() as kept:
        for _ in range(2):
            assert all(
                count == 0 for _, count in passes(plain.segment(VOLUME, FIRST, options, kept=kept))
            )


def test_a_run_leaves_room_for_what_is_kept(plain: Segmenter) -> None:
    options = SegmentOptions(max_memory=2 * 2**30)
    with FeatureCache(2**28).image() as kept:
        report = plain.segment(VOLUME, FIRST, options, kept=kept).report
    assert report.memory["limit_mib"] == 2048 - 256


def test_coarse_labels_come_before_the_fine_stage_and_lie_where_the_scan_does(
    plain: Segmenter,
) -> None:
    told: list[str] = []
    found: list[CoarseLabels] = []

    def keep(coarse: CoarseLabels) -> None:
        told.append("coarse labels")
        found.append(coarse)

    affine = np.array([[-4.0, 0, 0, 20], [0, 4.0, 0, -30], [0, 0, 6.0, 7], [0, 0, 0, 1]])
    volume = Volume.from_array(VOLUME.image_dhw, affine, axes="kji", frame="LPS")
    result = plain.segment(
        volume, BOTH, on_coarse=keep, progress=lambda stage, *_: told.append(stage)
    )
    assert told.index("fine") > told.index("coarse labels") > told.index("coarse")
    assert told.count("coarse labels") == 1
    (coarse,) = found
    assert set(np.unique(coarse.labels_dhw)) <= {0, 1, 4}
    assert coarse.labels == (1, 4)
    assert (
        coarse.labels_dhw.shape
        == result.report.stages[0].resampled_shape_hwd[2:]
        + (result.report.stages[0].resampled_shape_hwd[:2])
    )
    on_scan = volume.source.canonical_affine_lps(volume.shape_dhw, volume.spacing_hwd_mm)
    for corner in (0, 1):  # outer edges of both grids
        edges = [
            matrix @ [*(np.array(shape[::-1]) * corner - 0.5), 1]
            for matrix, shape in (
                (on_scan, volume.shape_dhw),
                (coarse.affine_lps, coarse.labels_dhw.shape),
            )
        ]
        np.testing.assert_allclose(*edges)
    assert (coarse.labels_dhw > 0).any() == (result.stage_labels_dhw["coarse"] > 0).any()


def test_no_coarse_labels_come_where_no_fine_stage_follows(plain: Segmenter) -> None:
    found: list[CoarseLabels] = []
    for stages in ("coarse", "fine"):
        plain.segment(VOLUME, FIRST, SegmentOptions(stages=stages), on_coarse=found.append)  # type: ignore[arg-type]
    assert found == []


# The cache itself ---------------------------------------------------------------------------------


def array(size: int) -> npt.NDArray[np.uint8]:
    return np.zeros(size, np.uint8)


def keep(image: KeptImage, run: int, key: str, size: int) -> bool:
    return image.cache.put((key,), array(size), size, image, run)


def test_bytes_are_counted_to_the_last_one() -> None:
    cache = FeatureCache(100)
    image = cache.image()
    run = cache.begin_run()
    assert keep(image, run, "a", 60)
    assert cache.bytes == 60
    assert not keep(image, run, "a", 10)
    assert not keep(image, run, "b", 41)
    assert keep(image, run, "c", 40)
    assert (cache.bytes, len(cache)) == (100, 2)
    image.close()
    assert (cache.bytes, len(cache)) == (0, 0)
    assert cache.counts.evictions == 0


def test_what_was_not_used_for_longest_makes_room() -> None:
    cache = FeatureCache(100)
    image = cache.image()
    first = cache.begin_run()
    for key in "abcd":
        assert keep(image, first, key, 25)
    second = cache.begin_run()
    assert cache.get(("a",), second) is not None
    assert cache.get(("x",), second) is None
    assert keep(image, second, "e", 30)
    assert cache.bytes == 80
    assert (cache.counts.hits, cache.counts.misses, cache.counts.evictions) == (1, 1, 2)
    held = [cache.get((key,), second) is not None for key in "abcde"]
    assert held == [True, False, False, True, True]


def test_nothing_that_the_run_itself_used_makes_room() -> None:
    """Else a run over more than there is room for would find nothing the second time."""
    cache = FeatureCache(100)
    image = cache.image()
    for _ in range(2):
        run = cache.begin_run()
        found = [cache.get((key,), run) is not None or keep(image, run, key, 40) for key in "abc"]
        assert found == [True, True, False]
    assert cache.counts.hits == 2
    assert cache.has_room(100, cache.begin_run())
    assert not cache.has_room(101, cache.begin_run())


def test_a_closed_image_keeps_nothing_more_and_leaves_others_alone() -> None:
    cache = FeatureCache(100)
    run = cache.begin_run()
    with cache.image() as image:
        other = cache.image()
        assert keep(image, run, "a", 10)
        assert keep(other, run, "b", 20)
    assert not keep(image, run, "c", 10)
    assert cache.get(("a",), run) is None
    assert cache.bytes == 20


def test_digests_tell_values_types_and_shapes_apart() -> None:
    values = np.arange(6, dtype=np.uint8)
    different = [values, values + 1, values.reshape(2, 3), values.view(np.int8), values[::-1]]
    assert len({digest_of(each) for each in different}) == len(different)
    assert digest_of(values[::-1]) == digest_of(values[::-1].copy())
    assert digest_of(np.zeros((0, 3))) != digest_of(np.zeros((3, 0)))
