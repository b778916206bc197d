"""Files of a release, told apart by names, else by what is in them; nothing is unpickled."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest

from medals_rt.bundle.released import (
    CheckpointFile,
    Content,
    ReleasedFiles,
    find_released,
    parse_released_name,
    read_content,
    terms_of,
)
from medals_rt.common.errors import BundleError, InputError

COARSE = "nano_UNet_CVPR2025_crop_size_224_224_128_spacing_1.5_1.5_3.0_step_358600.pth"
FINE = "nano_UNet_CVPR2025_crop_size_192_192_192_spacing_1.0_1.0_1.0_step_341300.pth"
NETWORK = {"model_state_dict": {"module.backbone.encoder.stages.0.0.convs.0.conv.weight": 1}}
ENCODER = {"model_state_dict": {"module.modality_embed.weight": 1, "module.text_tower.x": 2}}


def network(*spacing: float) -> dict[str, object]:
    """What a checkpoint that this project trained holds, but for its tensors."""
    return {**NETWORK, "config": {"window_hwd": [48, 48, 48]}, "spacing_hwd_mm": list(spacing)}


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def save(path: Path, content: object) -> Path:
    """Write a `.pth` as PyTorch does: a zip with a pickle in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/data.pkl", pickle.dumps(content, protocol=2))
    return path


def save_safetensors(path: Path, names: list[str], remarks: dict[str, str]) -> Path:
    header = json.dumps({"__metadata__": remarks, **{name: {} for name in names}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def refusal(folder: Path, *stages: CheckpointFile) -> str | None:
    with pytest.raises(InputError) as caught:
        find_released(folder, *stages)
    assert "\n" not in str(caught.value)
    return caught.value.code


def test_names_hold_window_and_spacing() -> None:
    assert parse_released_name(COARSE) == ((224, 224, 128), (1.5, 1.5, 3.0))
    assert parse_released_name(FINE) == ((192, 192, 192), (1.0, 1.0, 1.0))
    assert parse_released_name("crop_size_8_9_10_spacing_1_2_3.5.pth")[1] == (1, 2, 3.5)
    assert parse_released_name("crop_size_8_9_10_spacing_1._.5_3.pth")[1] == (1, 0.5, 3)
    assert parse_released_name("crop_size_8_9_10_spacing_1_2_3.5.safetensors")[1] == (1, 2, 3.5)


@pytest.mark.parametrize(
    "name",
    [
        "last.pth",
        "crop_size_64_64.pth",
        "spacing_1.0_1.0_1.0.pth",
        "crop_size_8_9_10_spacing_1.0.0_1_1.pth",
        "crop_size_8_9_10_spacing_._1_1.pth",
    ],
)
def test_other_names_tell_nothing(name: str) -> None:
    assert parse_released_name(name) == (None, None)


def test_stages_are_told_apart_by_their_spacing(tmp_path: Path) -> None:
    write(tmp_path, f"b/{COARSE}", f"a/{FINE}", "other.pth", "README.md")
    coarse, fine = (CheckpointFile(tmp_path / name) for name in (f"b/{COARSE}", f"a/{FINE}"))
    assert find_released(tmp_path) == ReleasedFiles(coarse, fine)
    write(tmp_path, "text/text_encoder.pth", "biolord/config.json", "biolord/vocab.txt")
    found = find_released(tmp_path)
    assert found.text_encoder == tmp_path / "text" / "text_encoder.pth"
    assert found.biolord == tmp_path / "biolord"


def test_files_of_any_name_are_told_apart_by_their_content(tmp_path: Path) -> None:
    fine = save(tmp_path / "a.pth", network(1.0, 1.0, 1.0))
    coarse = save_safetensors(
        tmp_path / "b.safetensors",
        list(NETWORK["model_state_dict"]),
        {"spacing_hwd_mm": "[1.5, 1.5, 3]"},
    )
    encoder = save(tmp_path / "c.pth", ENCODER)
    save(tmp_path / "optimizer.pth", {"state": {}})
    assert find_released(tmp_path) == ReleasedFiles(
        CheckpointFile(coarse), CheckpointFile(fine), encoder
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (NETWORK, Content("network")),
        (ENCODER, Content("text encoder")),
        (network(8.0, 8.0, 4), Content("network", (8.0, 8.0, 4.0))),
        (NETWORK | {"spacing_hwd_mm": [1.0, 1.0]}, Content("network")),
        (NETWORK | {"spacing_hwd_mm": [1.0, 0.0, 1.0]}, Content("network")),
        (NETWORK | {"spacing_hwd_mm": ["a", 1.0, 1.0, 1.0]}, Content("network")),
        (NETWORK | {"more": ENCODER}, Content("other")),
        (["a", 1], Content("other")),
    ],
)
def test_content_is_what_the_names_in_it_tell(
    tmp_path: Path, content: object, expected: Content
) -> None:
    assert read_content(save(tmp_path / "x.pth", content)) == expected


class Trap:
    """A pickle that would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_no_pickle_is_run_and_no_damage_matters(tmp_path: Path) -> None:
    save(tmp_path / "trap.pth", {**NETWORK, "trap": Trap(tmp_path / "sprung")})
    assert read_content(tmp_path / "trap.pth").kind == "network"
    assert not (tmp_path / "sprung").exists()
    whole = (tmp_path / "trap.pth").read_bytes()
    for name, data in {
        "empty.pth": b"",
        "cut.pth": whole[: len(whole) // 2],
        "text.pth": b"no zip",
        "cut.safetensors": b"\x10",
        "huge.safetensors": b"\xff" * 8,
        "list.safetensors": (2).to_bytes(8, "little") + b"[]",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert read_content(tmp_path / name) == Content("other")


def test_the_stages_may_be_named_inside_the_folder(tmp_path: Path) -> None:
    save(tmp_path / "x" / "1.pth", NETWORK)
    save(tmp_path / "x" / "2.pth", NETWORK)
    assert refusal(tmp_path) == "checkpoints-not-found"
    spacing, window = (3.0, 3.0, 3.0), (8, 8, 8)
    named = (CheckpointFile(Path("x/1.pth"), window, spacing, 4), CheckpointFile(Path("x/2.pth")))
    found = find_released(tmp_path, *named)
    assert found.coarse == CheckpointFile(tmp_path / "x" / "1.pth", window, spacing, 4)
    assert found.fine == CheckpointFile(tmp_path / "x" / "2.pth")
    missing = CheckpointFile(Path("3.pth"))
    assert refusal(tmp_path, named[0], missing) == "checkpoints-not-found"
    with pytest.raises(BundleError):
        find_released(tmp_path, named[0], CheckpointFile(Path("../3.pth")))


@pytest.mark.parametrize(
    ("names", "code"),
    [
        ((), "checkpoints-not-found"),
        ((COARSE, "fine.pth"), "checkpoints-not-found"),
        ((FINE, f"older/{FINE}"), "checkpoints-not-found"),
        ((COARSE, FINE, FINE.replace("341300", "9")), "checkpoints-not-found"),
        ((COARSE, FINE, "a/text_encoder.pth", "text_encoder.pth"), "text-encoder-ambiguous"),
        (
            (COARSE, FINE, "a/config.json", "a/vocab.txt", "b/config.json", "b/tokenizer.json"),
            "biolord-ambiguous",
        ),
    ],
)
def test_no_guess_between_files(tmp_path: Path, names: tuple[str, ...], code: str) -> None:
    assert refusal(write(tmp_path, *names)) == code


def test_a_network_that_does_not_say_its_spacing_is_named_in_the_refusal(tmp_path: Path) -> None:
    save(tmp_path / "coarse.pth", NETWORK)
    write(tmp_path, FINE)
    with pytest.raises(InputError) as caught:
        find_released(tmp_path)
    for word in ("coarse.pth (no spacing stated)", "--stage1-spacing", "1 x 1 x 1"):
        assert word in str(caught.value)


def test_terms_are_the_license_files_and_what_the_readme_states(tmp_path: Path) -> None:
    assert terms_of(tmp_path, "x", "MIT") == terms_of(tmp_path, "x", "MIT")
    write(tmp_path, "LICENSE", "NOTICE.txt", "licenses/other", "weights.pth")
    found = terms_of(tmp_path, "hf:a/b", "MIT")
    assert (found.source, found.license) == ("hf:a/b", "MIT")
    assert found.texts == (tmp_path / "LICENSE", tmp_path / "NOTICE.txt")
    (tmp_path / "README.md").write_text(
        "---\ntags: x\nlicense: cc-by-4.0\n---\nlicense: no\n", encoding="utf-8"
    )
    assert terms_of(tmp_path, "hf:a/b", "MIT").license == "cc-by-4.0"
    (tmp_path / "README.md").write_text("license: not in a heading\n", encoding="utf-8")
    assert terms_of(tmp_path, "hf:a/b").license is None
