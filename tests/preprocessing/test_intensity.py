"""Intensities: windows and percentiles against their definition (paper 3.2)."""

import numpy as np
import pytest

from medals_rt.common.errors import InputError
from medals_rt.io.volume import Volume
from medals_rt.preprocessing.intensity import prepare_intensities

RNG = np.random.default_rng(0)


def volume(image: np.ndarray) -> Volume:
    return Volume(image, (1.0, 1.0, 1.0))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int16])
def test_images_in_0_to_255_are_untouched(dtype: type) -> None:
    image = RNG.integers(0, 256, (4, 5, 6)).astype(dtype)
    done = prepare_intensities(volume(image), "CT")
    assert done.action == "unchanged"
    assert done.image_dhw.dtype == np.float32
    assert np.array_equal(done.image_dhw, image)


@pytest.mark.parametrize(
    ("window", "low", "high"),
    [("soft tissue", -160, 240), ("lung", -910, 590), ("brain", 0, 80), ("bone", -500, 1300)],
)
def test_ct_windows(window: str, low: float, high: float) -> None:
    image = np.linspace(-1024, 3000, 60, dtype=np.float32).reshape(3, 4, 5)
    before = image.copy()
    done = prepare_intensities(volume(image), "CT", window)
    expected = np.clip((image - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(done.image_dhw, expected, atol=1e-3)
    assert (done.low, done.high) == (low, high)
    assert done.describe()["window"] == window
    assert np.array_equal(image, before), "the caller's array must stay as it was"


@pytest.mark.parametrize("modality", ["CT", "MRI", "PET"])
def test_a_window_in_numbers_is_taken_at_its_word(modality: str) -> None:
    image = np.linspace(0, 255, 60, dtype=np.float32).reshape(3, 4, 5)
    done = prepare_intensities(volume(image), modality, "100,80")
    np.testing.assert_allclose(done.image_dhw, np.clip((image - 30) / 100, 0, 1) * 255, atol=1e-3)
    assert done.describe() == {"action": "window", "window": "100,80", "low": 30.0, "high": 130.0}


def test_other_modalities_are_cut_at_percentiles() -> None:
    image = RNG.normal(1000, 300, (8, 9, 10))
    done = prepare_intensities(volume(image), "MRI")
    low, high = np.percentile(image, [0.5, 99.5])
    np.testing.assert_allclose(
        done.image_dhw, np.clip((image - low) / (high - low), 0, 1) * 255, atol=1e-3
    )
    assert done.action == "percentiles"
    assert done.image_dhw.min() == 0
    assert done.image_dhw.max() == pytest.approx(255, abs=1e-3)


def test_an_image_of_one_value_becomes_zeros() -> None:
    assert not prepare_intensities(volume(np.full((2, 2, 2), 700)), "MRI").image_dhw.any()


def test_flipped_views_are_taken() -> None:
    image = RNG.normal(0, 500, (3, 4, 5))[:, ::-1, ::-1]
    done = prepare_intensities(volume(image), "CT")
    assert done.image_dhw.flags.c_contiguous


def test_unknown_windows_are_refused() -> None:
    with pytest.raises(InputError, match="soft tissue"):
        prepare_intensities(volume(np.full((2, 2, 2), 700)), "CT", "liverish")
