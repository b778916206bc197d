"""Released checkpoints, found by their names."""

from pathlib import Path

import pytest

from medals_rt.bundle.released import ReleasedFiles, find_released, parse_released_name
from medals_rt.common.errors import InputError

COARSE = "nano_UNet_CVPR2025_crop_size_224_224_128_spacing_1.5_1.5_3.0_step_358600.pth"
FINE = "nano_UNet_CVPR2025_crop_size_192_192_192_spacing_1.0_1.0_1.0_step_341300.pth"


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_names_hold_window_and_spacing() -> None:
    assert parse_released_name(COARSE) == ((224, 224, 128), (1.5, 1.5, 3.0))
    assert parse_released_name(FINE) == ((192, 192, 192), (1.0, 1.0, 1.0))
    assert parse_released_name("crop_size_8_9_10_spacing_1_2_3.5.pth")[1] == (1, 2, 3.5)


@pytest.mark.parametrize("name", ["last.pth", "crop_size_64_64.pth", "spacing_1.0_1.0_1.0.pth"])
def test_other_names_tell_nothing(name: str) -> None:
    assert parse_released_name(name) == (None, None)


def test_stages_are_told_apart_by_their_spacing(tmp_path: Path) -> None:
    write(tmp_path, f"b/{COARSE}", f"a/{FINE}", "other.pth", "README.md")
    coarse, fine = tmp_path / "b" / COARSE, tmp_path / "a" / FINE
    assert find_released(tmp_path) == ReleasedFiles(coarse, fine, None)
    write(tmp_path, "text/text_encoder.pth")
    assert find_released(tmp_path).text_encoder == tmp_path / "text" / "text_encoder.pth"


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ((), "checkpoints-not-found"),
        ((COARSE, "fine.pth"), "checkpoints-not-found"),
        ((FINE, f"older/{FINE}"), "checkpoints-not-found"),
        ((COARSE, FINE, FINE.replace("341300", "9")), "checkpoints-not-found"),
        ((COARSE, FINE, "a/text_encoder.pth", "text_encoder.pth"), "text-encoder-ambiguous"),
    ],
)
def test_no_guess_between_files(tmp_path: Path, names: tuple[str, ...], code: str) -> None:
    with pytest.raises(InputError) as caught:
        find_released(write(tmp_path, *names))
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
