from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import zoom

from medals_rt.common.arrays import as_namespace, to_host
from medals_rt.planning.geometry import separate_axis
from medals_rt.preprocessing.label_interpolation import _to_float16_steps
from medals_rt.preprocessing.resampling import (
    FILE_ORDER,
    MODEL_ORDER,
    resample_image,
    resample_labels,
)

IMAGE_TOLERANCE = 1e-4  # of the image's range; found: 1.6e-7
LABEL_TIES = 0  # voxels of the golden label maps that differ


def test_golden_images_and_labels(golden: Path, xp: Any) -> None:
    pairs = json.loads((golden / "resample.json").read_text(encoding="utf-8"))
    assert len(pairs) == 8
    differing = 0
    with np.load(golden / "resample.npz") as stored:
        for i, pair in enumerate(pairs):
            shape = tuple(pair["new_shape"])
            axis = separate_axis(np.asarray(pair["spacing"], np.float32), pair["target_spacing"])
            image = resample_image(xp.asarray(stored[f"{i}_image"]), shape, axis)
            expected = stored[f"{i}_image_resampled"]
            assert image.dtype == xp.float32
            np.testing.assert_allclose(
                to_host(image), expected, rtol=0, atol=IMAGE_TOLERANCE * np.ptp(expected)
            )
            labels = resample_labels(xp.asarray(stored[f"{i}_label"]), shape, axis)
            back = resample_labels(
                xp.asarray(stored[f"{i}_label_resampled"]), stored[f"{i}_label"].shape
            )
            assert labels.dtype == xp.int16
            differing += np.count_nonzero(to_host(labels) != stored[f"{i}_label_resampled"])
            differing += np.count_nonzero(to_host(back) != stored[f"{i}_label_back"])
    assert differing <= LABEL_TIES


def weights_by_torch_rule(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Trilinear weights of a mask in float32, one axis after the other, the last axis first.

    With torch's fused multiply-adds: what they round once is counted in float64, then rounded.
    """
    result = mask.astype(np.float32) * np.float32(1000)
    for axis in (2, 1, 0):
        n, m = mask.shape[axis], shape[axis]
        scale = float(np.float32(n) / np.float32(m))
        at = np.maximum((scale * (np.arange(m) + 0.5) - 0.5).astype(np.float32), 0)
        low = np.minimum(at.astype(int), n - 1)
        high = np.minimum(low + 1, n - 1)
        share = (at - low.astype(np.float32)).reshape([-1 if a == axis else 1 for a in range(3)])
        upper = np.take(result, high, axis) * share
        lower = np.take(result, low, axis).astype(np.float64) * (1 - share)
        result = (lower + upper).astype(np.float32)
    return result


def labels_by_masks(
    labels: np.ndarray, shape: tuple[int, ...], separate: int | None = None
) -> np.ndarray:
    """The rule as it is written: each label's mask interpolated, float16, the first largest."""
    if separate is not None:
        n, m = labels.shape[separate], shape[separate]
        scale = np.float32(n) / np.float32(m)
        nearest = ((np.arange(m, dtype=np.float32) + np.float32(0.5)) * scale).astype(int)
        labels = np.take(labels, np.minimum(nearest, n - 1), separate)
    values = np.unique(labels)
    weights = [weights_by_torch_rule(labels == v, shape).astype(np.float16) for v in values]
    return values[np.argmax(weights, axis=0)]


def noise_or_blobs(rng: np.random.Generator, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Labels below `count`: each voxel by itself, or cubes of 4 a side, all of one label."""
    if rng.random() < 0.5:
        return rng.integers(0, count, shape)
    small = rng.integers(0, count, [-(-length // 4) for length in shape])
    for axis, length in enumerate(shape):
        small = np.take(small, np.arange(length) // 4, axis)
    return small


@pytest.mark.parametrize("everywhere", [True, False], ids=["everywhere", "where contested"])
@settings(max_examples=60)
@given(
    st.tuples(*[st.integers(1, 14)] * 3),
    st.tuples(*[st.integers(1, 25)] * 3),
    st.integers(0, 2**32 - 1),
    st.integers(1, 20),
    st.sampled_from([np.uint8, np.int16, np.uint16]),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from([MODEL_ORDER, FILE_ORDER]),
)
def test_label_interpolation_equals_interpolating_every_mask(
    everywhere: bool,
    shape: tuple[int, int, int],
    new_shape: tuple[int, int, int],
    seed: int,
    count: int,
    dtype: type,
    separate: int | None,
    order: tuple[int, int, int],
) -> None:
    """Noise of up to 20 labels: nearly every voxel is contested, halves and thirds tie."""
    labels = noise_or_blobs(np.random.default_rng(seed), shape, count).astype(dtype) * dtype(12)
    with pytest.MonkeyPatch.context() as patch:
        if not everywhere:
            patch.setattr("medals_rt.preprocessing.resampling._FEW_VOXELS", 0)
        found = resample_labels(labels, new_shape, separate, order=order)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, labels_by_masks(labels, new_shape, separate))


@pytest.mark.parametrize("few", [0, 1 << 15], ids=["where contested", "everywhere"])
@pytest.mark.parametrize("new_shape", [(18, 17, 20), (6, 5, 20), (12, 20, 4)])
def test_every_library_interpolates_labels_alike(
    xp: Any, few: int, new_shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medals_rt.preprocessing.resampling._FEW_VOXELS", few)
    labels = np.random.default_rng(3).integers(0, 4, (12, 10, 8)).astype(np.int16)
    for separate in (None, 1):
        found = resample_labels(xp.asarray(labels), new_shape, separate)
        assert found.dtype == xp.int16
        np.testing.assert_array_equal(to_host(found), labels_by_masks(labels, new_shape, separate))


def test_weights_are_torchs_to_the_bit() -> None:
    """Ties are decided by the last bit: torch's own, of two masks that tie often."""
    torch = pytest.importorskip("torch")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch has no fused multiply-add here")
    rng = np.random.default_rng(4)
    for shape, new_shape in (((7, 4, 2), (32, 21, 13)), ((17, 23, 13), (51, 46, 8))):
        mask = rng.random(shape) < 0.4
        given_mask = torch.from_numpy(mask)[None, None].float() * 1000
        expected = torch.nn.functional.interpolate(given_mask, new_shape, mode="trilinear")
        np.testing.assert_array_equal(weights_by_torch_rule(mask, new_shape), expected[0, 0])


def test_image_agrees_with_scipy_zoom(xp: Any) -> None:
    """The same rule by another's hand; tolerance 1e-4 of the range (scipy counts in float64)."""
    image = np.random.default_rng(0).random((11, 14, 9), dtype=np.float32)
    shape = (17, 10, 9)
    factors = [b / a for a, b in zip(image.shape, shape, strict=True)]
    expected = zoom(image.astype(float), factors, order=1, mode="nearest", grid_mode=True)
    found = resample_image(xp.asarray(image), shape)
    np.testing.assert_allclose(to_host(found), expected, rtol=0, atol=1e-4)


def test_blocks_leave_no_seam() -> None:
    """An image of several blocks (2^17 voxels each) equals its own rows done alone."""
    image = np.random.default_rng(1).random((40, 70, 80), dtype=np.float32)
    whole = resample_image(image, (40, 111, 140))
    rows = [resample_image(image[i : i + 1], (1, 111, 140)) for i in range(40)]
    np.testing.assert_array_equal(whole, np.concatenate(rows))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_separate_axis_copies_slices(xp: Any, axis: int) -> None:
    image = np.random.default_rng(2).random((4, 4, 4), dtype=np.float32)
    labels = np.random.default_rng(2).integers(0, 4, (4, 4, 4)).astype(np.uint8)
    shape = [4, 4, 4]
    shape[axis] = 7
    nearest = [0, 0, 1, 2, 2, 3, 3]  # floor((i + 0.5) * 4 / 7)
    for source, resample in ((image, resample_image), (labels, resample_labels)):
        found = to_host(resample(xp.asarray(source), tuple(shape), axis))
        np.testing.assert_array_equal(found, np.take(source, nearest, axis))


@settings(max_examples=40)
@given(
    st.tuples(*[st.integers(1, 20)] * 3),
    st.tuples(*[st.integers(1, 30)] * 3),
    st.sampled_from([None, 0, 1, 2]),
)
def test_there_and_back_keeps_shape_values_and_range(
    shape: tuple[int, ...], new_shape: tuple[int, ...], axis: int | None
) -> None:
    rng = np.random.default_rng(sum(shape))
    labels = rng.integers(0, 300, shape).astype(np.uint16)
    back = resample_labels(resample_labels(labels, new_shape, axis), shape)
    assert back.shape == shape
    assert set(np.unique(back)) <= set(np.unique(labels))
    image = rng.random(shape, dtype=np.float32)
    back_image = resample_image(resample_image(image, new_shape, axis), shape)
    assert back_image.shape == shape
    assert image.min() - 1e-6 <= back_image.min()
    assert back_image.max() <= image.max() + 1e-6


@pytest.mark.parametrize("new_shape", [(7, 9, 4), (12, 13, 15), (5, 20, 8)])
@pytest.mark.parametrize("order", [MODEL_ORDER, FILE_ORDER])
def test_memory_order_changes_nothing_but_memory(
    xp: Any, new_shape: tuple[int, int, int], order: tuple[int, int, int]
) -> None:
    """Files hold (D, H, W): views of them give the same voxels, in the memory order asked for."""
    rng = np.random.default_rng(5)
    image = rng.random((8, 11, 10), dtype=np.float32)
    labels = rng.integers(0, 5, image.shape).astype(np.uint8)
    for source, resample in ((image, resample_image), (labels, resample_labels)):
        expected = resample(source, new_shape)
        turned = np.ascontiguousarray(source.transpose(2, 0, 1))
        view = xp.permute_dims(xp.asarray(turned), (1, 2, 0))
        found = resample(view, new_shape, order=order)
        np.testing.assert_allclose(to_host(found), expected, rtol=0, atol=3e-7)
        if xp is np:
            assert found.transpose(order).flags.c_contiguous
    np.testing.assert_array_equal(to_host(found), expected)


@pytest.mark.usefixtures("all_cores")
def test_slabs_shared_by_threads_leave_no_seam_in_labels() -> None:
    labels = np.random.default_rng(6).integers(0, 3, (170, 120, 130)).astype(np.uint8)
    labels[40:80] = 1
    whole = resample_labels(labels, (170, 150, 201))
    rows = [resample_labels(labels[i : i + 1], (1, 150, 201)) for i in range(0, 170, 10)]
    np.testing.assert_array_equal(whole[::10], np.concatenate(rows))
    shape = (255, 120, 130)
    np.testing.assert_array_equal(
        resample_labels(labels, shape)[:, ::10], resample_labels(labels[:, ::10], (255, 12, 130))
    )


@pytest.mark.parametrize("dtype", [np.float16, np.uint8, np.int16])
def test_other_image_types_become_float32(dtype: type) -> None:
    image = np.random.default_rng(7).integers(0, 255, (5, 6, 7)).astype(dtype)
    found = resample_image(image, (7, 6, 9))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, resample_image(image.astype(np.float32), (7, 6, 9)))


def test_nothing_to_do_still_gives_a_new_array(xp: Any) -> None:
    image = xp.ones((3, 4, 5), dtype=xp.float32)
    labels = xp.ones((3, 4, 5), dtype=xp.uint8)
    for source, resample in ((image, resample_image), (labels, resample_labels)):
        result = resample(source, (3, 4, 5))
        result[0, 0, 0] = 0
        assert float(source[0, 0, 0]) == 1


def test_thousandths_are_rounded_as_by_float16(xp: Any) -> None:
    """All float32 values of an octave; the others are these times a power of two."""
    low, high = (int(np.float32(each).view(np.uint32)) for each in (512, 1024))
    values = np.arange(low, high, dtype=np.uint32).view(np.float32)
    for octave in (values, values[::97] / 1024):
        found = to_host(_to_float16_steps(as_namespace(octave, xp)))
        assert (found == octave.astype(np.float16)).all()
