"""Intensities: windows and percentiles against their definition (paper 3.2)."""

import numpy as np
import pytest

from medals_rt.common.errors import CaseError, InputError
from medals_rt.io.volume import SourceGrid, Volume
from medals_rt.planning.policy import load_policy
from medals_rt.preprocessing.intensity import is_prepared, prepare_intensities
from tests.errors import raises
from tests.paths import NATIVE

RNG = np.random.default_rng(0)


def volume(image: np.ndarray) -> Volume:
    return Volume(image, (1.0, 1.0, 1.0))


def scan(image: np.ndarray) -> Volume:
    """A volume of a file that states its geometry."""
    grid = SourceGrid.from_affine(np.eye(4))
    return Volume(image, (1.0, 1.0, 1.0), source=grid, geometry_is_stated=True)


def codes(volume: Volume, modality: str, window: str = "soft tissue") -> list[tuple[str, str]]:
    return [(n.code, n.severity) for n in prepare_intensities(volume, modality, window).notes]


def ramp(low: float, high: float, dtype: type = np.float32) -> np.ndarray:
    """Every value equally often, the extremes among them."""
    return np.linspace(low, high, 600).reshape(6, 10, 10).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int16])
def test_prepared_images_are_untouched(dtype: type) -> None:
    image = RNG.integers(0, 256, (4, 5, 6)).astype(dtype)
    image[0, 0, :2] = 0, 255
    for source in (volume, scan):
        done = prepare_intensities(source(image), "CT")
        assert done.action == "unchanged"
        assert done.image_dhw.dtype == np.float32
        assert np.array_equal(done.image_dhw, image)


@pytest.mark.parametrize(
    ("image", "of_a_scan", "of_a_challenge_file"),
    [
        (ramp(0, 255, np.uint8), True, True),
        (ramp(0, 12, np.uint8), True, True),  # 8-bit: as it is, but see the notes
        (np.rint(ramp(0, 255)), True, True),
        (np.rint(ramp(0, 250)), True, True),
        (np.rint(ramp(0, 249)), False, True),  # a challenge file that was cropped
        (ramp(0, 255), False, True),  # ... that was resampled
        (ramp(0, 249), False, False),
        (ramp(0, 1), False, False),
        (ramp(0, 20), False, False),  # a PET in SUV
        (ramp(0, 255, np.int16) - 1, False, False),
        (ramp(0, 256, np.int16), False, False),
        (ramp(0, 4095), False, False),
    ],
)
def test_what_counts_as_prepared(
    image: np.ndarray, of_a_scan: bool, of_a_challenge_file: bool
) -> None:
    assert is_prepared(scan(image)) == of_a_scan
    assert is_prepared(volume(image)) == of_a_challenge_file
    for source, prepared in ((scan, of_a_scan), (volume, of_a_challenge_file)):
        done = prepare_intensities(source(image), "MRI")
        assert (done.action == "unchanged") == prepared


@pytest.mark.parametrize("highest", [1.0, 12.0, 200.5, 4095.0])
def test_a_scan_is_scaled_alike_in_whatever_units(highest: float) -> None:
    image = RNG.gamma(2, 1, (6, 7, 8))
    image[:3] = 0
    first = prepare_intensities(scan(image / image.max()), "MRI").image_dhw
    other = prepare_intensities(scan(image / image.max() * highest), "MRI").image_dhw
    np.testing.assert_allclose(other, first, atol=1e-3)
    assert first.max() == pytest.approx(255, abs=1e-3)


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


@pytest.mark.parametrize("modality", ["MRI", "PET", "US", "Microscopy"])
@pytest.mark.parametrize("background", [0.0, 0.6])
def test_other_modalities_are_cut_at_percentiles_of_what_is_not_0(
    modality: str, background: float
) -> None:
    image = RNG.normal(1000, 150, (8, 9, 10))
    image[RNG.random(image.shape) < background] = 0
    done = prepare_intensities(scan(image), modality)
    low, high = np.percentile(image[image != 0], [0.5, 99.5])
    expected = np.clip((image - low) / (high - low), 0, 1) * 255
    expected[image == 0] = 0
    np.testing.assert_allclose(done.image_dhw, expected, atol=1e-3)
    assert done.action == "percentiles"
    assert (done.low, done.high) == pytest.approx((low, high), rel=1e-6)


def test_zeros_stay_0_among_negative_values() -> None:
    """A standardized MR: its background is 0, in the middle of its values."""
    image = RNG.normal(0, 1, (8, 9, 10))
    image[:4] = 0
    done = prepare_intensities(scan(image), "MRI")
    assert not done.image_dhw[:4].any()
    assert np.median(done.image_dhw[4:]) == pytest.approx(127, abs=15)


def test_two_values_are_told_apart() -> None:
    """Of a mask, all that is not 0 is one value: no percentiles to scale between."""
    image = np.where(RNG.random((4, 5, 6)) < 0.3, 7.0, 0.0)
    done = prepare_intensities(scan(image), "MRI")
    np.testing.assert_allclose(done.image_dhw, image / 7 * 255, rtol=1e-6)


HU = ramp(-1024, 1500)


@pytest.mark.parametrize(
    ("image", "modality", "window", "expected"),
    [
        (HU, "CT", "soft tissue", []),
        (HU + 1024, "CT", "soft tissue", [("ct-not-hounsfield", "warning")]),
        (
            np.where(HU < -1000, -2000, HU + 1024),
            "CT",
            "soft tissue",
            [("ct-not-hounsfield", "warning")],
        ),
        (np.where(HU < -1000, -2000, HU), "CT", "soft tissue", []),  # padding around a good CT
        (np.where(HU < 0, -1000, HU), "CT", "soft tissue", []),  # a phantom in air
        (np.where(HU > 1500, 31_743, HU), "CT", "soft tissue", []),  # metal on an extended scale
        (
            np.where(HU < -1000, 62_512, HU),  # padding of -2000 that was read without its sign
            "CT",
            "soft tissue",
            [("ct-not-hounsfield", "warning")],
        ),
        (HU / 1000, "CT", "soft tissue", [("ct-not-hounsfield", "warning")]),
        (HU * 1000, "CT", "soft tissue", [("ct-not-hounsfield", "warning")]),
        (ramp(-1, 1), "CT", "soft tissue", [("ct-not-hounsfield", "warning")]),
        (ramp(3000, -1000), "CT", "soft tissue", [("ct-not-hounsfield", "warning")]),  # inverted
        (ramp(-1, 1), "CT", "2,0", []),
        (HU.clip(-120, 60), "CT", "soft tissue", []),  # a crop of fat and muscle
        (HU + 1024, "CT", "400,1064", []),  # whoever gives numbers knows the units
        (HU, "CT", "10,5000", [("window-misses-image", "warning")]),
        (HU - 2000, "CT", "soft tissue", [("window-misses-image", "warning")]),
        (HU, "MRI", "soft tissue", [("negative-values", "warning")]),
        (np.where(HU < -1015, -3, HU.clip(0)), "MRI", "soft tissue", []),  # ringing
        (ramp(0, 12, np.uint8), "MRI", "soft tissue", [("intensities-dim", "warning")]),
        (ramp(0, 255, np.uint8), "MRI", "soft tissue", [("intensities-prepared", "info")]),
        (ramp(0, 255, np.uint8), "CT", "soft tissue", [("intensities-prepared", "warning")]),
        (ramp(0, 20), "PET", "soft tissue", [("intensities-not-prepared", "info")]),
        (
            ramp(0, 1),
            "CT",
            "soft tissue",
            [("intensities-not-prepared", "info"), ("ct-not-hounsfield", "warning")],
        ),
    ],
)
def test_notes_of_a_scan(
    image: np.ndarray, modality: str, window: str, expected: list[tuple[str, str]]
) -> None:
    assert codes(scan(image), modality, window) == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.rint(ramp(0, 255)), []),
        (np.rint(ramp(0, 200)), []),
        (np.rint(ramp(0, 12)), [("intensities-dim", "warning")]),
        (ramp(0, 1), [("intensities-not-prepared", "warning")]),
        (ramp(0, 4095), []),
    ],
)
def test_notes_of_a_challenge_file(image: np.ndarray, expected: list[tuple[str, str]]) -> None:
    assert codes(volume(image), "MRI") == expected


def test_an_image_that_is_mostly_padding() -> None:
    image = np.zeros((20, 20, 20))
    image[:4, :4, :4] = ramp(500, 900).reshape(-1)[:64].reshape(4, 4, 4)
    assert codes(scan(image), "MRI") == [("image-mostly-constant", "warning")]
    image[:4, :5, :4] = 600
    assert codes(scan(image), "MRI") == []


@pytest.mark.parametrize("value", [0, 700])
def test_an_image_of_one_value_is_refused(value: int) -> None:
    """Of such an image the network makes organs all the same."""
    for source, window in ((volume, "soft tissue"), (scan, "400,40")):
        with raises(CaseError, "image-constant"):
            prepare_intensities(source(np.full((2, 2, 2), value)), "CT", window)


def test_flipped_views_are_taken() -> None:
    image = RNG.normal(0, 500, (3, 4, 5))[:, ::-1, ::-1]
    done = prepare_intensities(volume(image), "CT")
    assert done.image_dhw.flags.c_contiguous


@pytest.mark.parametrize(
    ("window", "code"),
    [
        ("liverish", "window-unknown"),
        ("400", "window-unknown"),
        ("0,40", "window-not-positive"),
        ("nan,40", "window-not-positive"),
        ("400,inf", "window-not-positive"),
        ("1e99,0", "window-out-of-range"),
        ("400,-1e99", "window-out-of-range"),
        ("1e-40,0", "window-out-of-range"),
    ],
)
def test_unknown_windows_are_refused(window: str, code: str) -> None:
    with pytest.raises(InputError) as refused:
        prepare_intensities(volume(np.full((2, 2, 2), 700)), "CT", window)
    assert refused.value.code == code


GRAY_LEVELS_OFF_BY_ONE = 0.005  # float32 images: rounding at the edge of a gray level


def native_intensities() -> dict[str, np.ndarray]:
    with np.load(NATIVE / "intensities.npz") as stored:
        return {name: stored[name] for name in stored.files}


@pytest.mark.parametrize("name", [each for each in native_intensities() if "." in each])
def test_intensities_of_the_authors_script(name: str) -> None:
    """Every voxel of images of whole numbers; of float32 ones all but rounding at edges."""
    stored = native_intensities()
    source, _, how = name.partition(".")
    modality, window = ("MRI", "soft tissue") if how == "percentiles" else ("CT", how)
    image, theirs = stored[source], stored[name].astype(np.float32)
    window = window.replace("_", " ")
    if image.min() == image.max():  # theirs runs the network on it
        with raises(CaseError, "image-constant"):
            prepare_intensities(scan(image), modality, window, "native")
        return
    ours = prepare_intensities(scan(image), modality, window, "native").image_dhw
    if image.dtype.kind == "f":
        theirs = np.minimum(theirs, 254)  # in float32 its white is 255
        assert np.abs(ours - theirs).max() <= 1
        assert np.mean(ours != theirs) <= GRAY_LEVELS_OFF_BY_ONE
    else:
        np.testing.assert_array_equal(ours, theirs)


def test_native_takes_no_image_for_a_prepared_one() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 8)).astype(np.uint8)
    assert is_prepared(scan(image))
    assert not is_prepared(scan(image), load_policy().preset("native").intensities)
    assert prepare_intensities(scan(image), "CT", preset="native").action == "window"
