"""Loading checkpoints: every key accounted for, nothing run, nothing guessed in silence."""

import dataclasses
import json
import pickle

import pytest

torch = pytest.importorskip("torch")
from msgspec.structs import replace
from safetensors.torch import save_file

from medals_export.checkpoint import (
    build_model,
    infer_config,
    load_checkpoint,
    normalize_keys,
    save_checkpoint,
)
from medals_export.model import MedalS, ModelConfig
from medals_export.torch_reference import TorchReference
from medals_rt.bundle.manifest import file_sha256
from medals_rt.bundle.released import parse_released_name
from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.errors import ExportError, MissingFileError
from tests.bundles import tiny_checkpoint, tiny_config
from tests.errors import raises

FINE_NAME = "nano_UNet_CVPR2025_crop_size_192_192_192_spacing_1.0_1.0_1.0_step_341300.pth"
COARSE_NAME = "nano_UNet_CVPR2025_crop_size_224_224_128_spacing_1.5_1.5_3.0_step_358600.pth"
SPACING = (2.0, 2.0, 3.0)


def plain_state():
    return tiny_checkpoint(2).model.state_dict()


def released_state(*, twins=True, singles=True, prefix="module."):
    """The same weights as the released files hold them."""
    state = {}
    for key, tensor in plain_state().items():
        twin = key.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
        has_twin = twin != key and ".convs." in key
        if singles or not has_twin:
            state[prefix + key] = tensor
        if twins and has_twin:
            state[prefix + twin] = tensor.clone()
    state[f"{prefix}mid_mask_embed_proj.0.0.weight"] = torch.zeros(2, 2)
    return state


def same_weights(model):
    return all(
        torch.equal(model.state_dict()[key], tensor) for key, tensor in plain_state().items()
    )


def test_full_size_network_has_the_released_keys_and_shapes(golden):
    keys = json.loads((golden / "checkpoint_keys.json").read_text(encoding="utf-8"))
    assert len(keys) == 288
    with torch.device("meta"):
        stored = {key: torch.empty(shape) for key, shape in keys.items()}
        ours = MedalS(ModelConfig.released((192, 192, 192))).state_dict()
    matched = 0
    for key, tensor in stored.items():
        plain = key.replace("all_modules.0.", "conv.").replace("all_modules.1.", "norm.")
        matched += ours[plain].shape == tensor.shape
    assert matched == 288
    plain_keys = {
        k.replace("all_modules.0.", "conv.").replace("all_modules.1.", "norm.") for k in keys
    }
    assert plain_keys == ours.keys()


@pytest.mark.parametrize(
    ("name", "window"), [(FINE_NAME, (192,) * 3), (COARSE_NAME, (224, 224, 128))]
)
def test_configuration_of_a_released_file_is_inferred(golden, name, window):
    keys = json.loads((golden / "checkpoint_keys.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        stored = {key: torch.empty(shape) for key, shape in keys.items() if "all_mod" not in key}
    found_window, spacing = parse_released_name(name)
    assert found_window == window
    assert spacing == ((1.0,) * 3 if window == (192,) * 3 else (1.5, 1.5, 3.0))
    assert infer_config(stored, window, heads=8) == ModelConfig.released(window)


@pytest.mark.parametrize(
    "options",
    [{}, {"prefix": ""}, {"prefix": "_orig_mod.module."}, {"twins": False}, {"singles": False}],
    ids=str,
)
def test_every_way_of_storing_blocks_loads(tmp_path, options):
    path = tmp_path / "step_crop_size_16_16_16_spacing_2.0_2.0_3.0_step_7.pth"
    torch.save({"model_state_dict": released_state(**options), "epoch": 3}, path)
    loaded = load_checkpoint(path, heads=4)
    assert loaded.model.config == tiny_config(2)
    assert loaded.spacing_hwd_mm == SPACING
    assert (loaded.source.file, loaded.source.sha256) == (path.name, file_sha256(path))
    assert not loaded.model.training
    assert same_weights(loaded.model)
    image = torch.zeros(1, 1, 16, 16, 16)
    assert loaded.model(image, image, torch.zeros(2, 24)).isfinite().all()


def test_saved_checkpoint_needs_no_arguments(tmp_path):
    path = tmp_path / "trained.pth"
    saved = save_checkpoint(path, tiny_checkpoint(2).model, SPACING)
    loaded = load_checkpoint(path)
    assert loaded.source == saved.source
    assert loaded.model.config == tiny_config(2)
    assert loaded.spacing_hwd_mm == SPACING
    assert same_weights(loaded.model)


def test_what_is_unknown_is_asked_for(tmp_path):
    path = tmp_path / "last.pth"
    torch.save({"model_state_dict": released_state()}, path)
    with raises(ExportError, "checkpoint-without-window"):
        load_checkpoint(path)
    with raises(ExportError, "checkpoint-without-spacing"):
        load_checkpoint(path, window_hwd=(16, 16, 16), heads=4)
    loaded = load_checkpoint(path, window_hwd=(16, 16, 16), spacing_hwd_mm=SPACING, heads=4)
    assert same_weights(loaded.model)


NAMED = "crop_size_16_16_16_spacing_2.0_2.0_3.0.pth"


@pytest.mark.parametrize(
    ("said", "given"),
    [(NAMED, {}), ("a.pth", {"window_hwd": (16, 16, 16), "spacing_hwd_mm": SPACING})],
)
def test_the_same_may_be_stated_twice(tmp_path, said, given):
    save_checkpoint(tmp_path / said, tiny_checkpoint(2).model, SPACING)
    assert load_checkpoint(tmp_path / said, **given).spacing_hwd_mm == SPACING


@pytest.mark.parametrize(
    ("said", "given", "what"),
    [
        ("a.pth", {"window_hwd": (16, 16, 8)}, "window"),
        ("a.pth", {"spacing_hwd_mm": (1.0, 1.0, 1.0)}, "spacing"),
        ("crop_size_16_16_8_spacing_2.0_2.0_3.0.pth", {}, "window"),
        ("crop_size_16_16_16_spacing_1.0_1.0_1.0.pth", {}, "spacing"),
    ],
)
def test_name_and_options_must_agree_with_the_content(tmp_path, said, given, what):
    save_checkpoint(tmp_path / said, tiny_checkpoint(2).model, SPACING)
    with raises(ExportError, f"{what}-contradiction", said):
        load_checkpoint(tmp_path / said, **given)


@pytest.mark.parametrize(
    ("given", "what"),
    [({"window_hwd": (16, 16, 8)}, "window"), ({"spacing_hwd_mm": (1.0, 1.0, 1.0)}, "spacing")],
)
def test_options_must_agree_with_the_name(tmp_path, given, what):
    torch.save({"model_state_dict": released_state()}, tmp_path / NAMED)
    with raises(ExportError, f"{what}-contradiction", NAMED):
        load_checkpoint(tmp_path / NAMED, **given, heads=4)


def test_heads_that_nothing_says_are_assumed_with_a_remark(tmp_path):
    torch.save({"model_state_dict": released_state()}, tmp_path / NAMED)
    assumed = load_checkpoint(tmp_path / NAMED)
    assert assumed.model.config.heads == 8
    (remark,) = assumed.remarks
    assert "8 attention heads are assumed" in remark
    assert load_checkpoint(tmp_path / NAMED, heads=4).remarks == ()
    saved = save_checkpoint(tmp_path / "saved.pth", tiny_checkpoint(2).model, SPACING)
    assert load_checkpoint(tmp_path / "saved.pth").remarks == saved.remarks == ()
    with raises(ExportError, "heads-contradiction"):
        load_checkpoint(tmp_path / "saved.pth", heads=8)


def test_a_reference_says_what_was_assumed(tiny_bundle):
    coarse = dataclasses.replace(tiny_checkpoint(1), remarks=("assumed",))
    assert "assumed" in TorchReference(tiny_bundle, coarse, tiny_checkpoint(2)).notes


def test_a_reference_has_the_heads_that_the_export_was_told(tiny_bundle, tmp_path):
    path, model = tmp_path / "fine.pth", tiny_checkpoint(2).model
    torch.save({"model_state_dict": model.state_dict()}, path)
    assert load_checkpoint(path, heads=4, otherwise=tiny_bundle.stage_spec(2)).source.heads == 4
    sources = tiny_bundle.manifest.sources
    told = replace(sources, fine=replace(sources.fine, heads=model.config.heads))
    manifest = replace(tiny_bundle.manifest, sources=told)
    bundle = dataclasses.replace(tiny_bundle, manifest=manifest)
    reference = TorchReference(bundle, tiny_checkpoint(1), path)
    assert reference._checkpoints[2].model.config == model.config
    assert not any("heads" in note for note in reference.notes)


def test_a_stage_says_what_nothing_else_says(tmp_path):
    path = tmp_path / "last.pth"
    torch.save({"model_state_dict": released_state()}, path)
    stage = StageSpec(2, (16, 16, 16), (5.0, 5.0, 5.0))
    assert load_checkpoint(path, heads=4, otherwise=stage).spacing_hwd_mm == (5.0, 5.0, 5.0)
    named = path.rename(tmp_path / "crop_size_16_16_16_spacing_2.0_2.0_3.0.pth")
    assert load_checkpoint(named, heads=4, otherwise=stage).spacing_hwd_mm == SPACING


def test_safetensors_load_as_pth_do(tmp_path):
    path = tmp_path / "fine.safetensors"
    config = json.dumps(tiny_config(2).to_dict())
    save_file(released_state(), path, {"config": config, "spacing_hwd_mm": "[2.0, 2.0, 3.0]"})
    loaded = load_checkpoint(path)
    assert loaded.spacing_hwd_mm == SPACING
    assert same_weights(loaded.model)
    path.write_bytes(b"\x10" + bytes(20))
    with pytest.raises(ExportError) as caught:
        load_checkpoint(path)
    assert caught.value.code == "checkpoint-unreadable"


def test_twins_that_differ_are_refused():
    state = released_state()
    key = next(key for key in state if "all_modules.1.weight" in key)
    state[key] = state[key] + 1
    with raises(ExportError, "weights-contradict", "norm.weight"):
        normalize_keys(state, "a.pth")


def test_weights_with_and_without_a_prefix_must_agree():
    state, key = plain_state(), "mask_embed_proj.0.weight"
    assert (
        normalize_keys(state | {f"module.{key}": state[key].clone()}, "a.pth").keys()
        == state.keys()
    )
    with raises(ExportError, "weights-contradict", key):
        normalize_keys(state | {f"module.{key}": state[key] + 1}, "a.pth")


def test_prefixes_are_taken_off_at_the_beginning_alone():
    weights = {"_orig_mod.module.a": torch.ones(1), "b.module.a": torch.ones(1)}
    assert normalize_keys(weights, "a.pth").keys() == {"a", "b.module.a"}


def test_weights_that_are_not_finite_are_named():
    state = {key: tensor.clone() for key, tensor in plain_state().items()}
    state["mask_embed_proj.0.weight"][0, 0] = torch.nan
    state["fusion_conv.convs.0.conv.bias"] = torch.full((4,), 1e300, dtype=torch.float64)
    wrong = ("mask_embed_proj.0.weight", "fusion_conv.convs.0.conv.bias")
    with raises(ExportError, "weights-not-finite", *wrong):
        normalize_keys(state, "a.pth")


def quantized(tensor):
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (torch.Tensor.int, "torch.int32"),
        (torch.Tensor.bool, "torch.bool"),
        (lambda tensor: tensor.to(torch.complex64), "torch.complex64"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (quantized, "torch.qint8"),
        (torch.Tensor.to_sparse, "torch.sparse_coo"),
        (lambda tensor: tensor.to("meta"), "without values"),
        (lambda _: 3, "(int)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_what_is_no_weight_is_refused(changed, said):
    state, key = plain_state(), "mask_embed_proj.0.weight"
    state[key] = changed(state[key])
    with raises(ExportError, "no-weights", "a.pth", key, said):
        normalize_keys(state, "a.pth")


def test_keys_that_are_no_text_are_refused():
    with raises(ExportError, "no-weights", "of type int"):
        normalize_keys(plain_state() | {7: torch.zeros(1)}, "a.pth")


def test_weights_of_more_bits_are_rounded():
    state = {key: tensor.double() for key, tensor in plain_state().items()}
    assert same_weights(build_model(tiny_config(2), normalize_keys(state, "a.pth"), "a.pth"))


def test_one_error_lists_every_wrong_key():
    state = plain_state()
    del state["transformer_decoder.norm.bias"]
    state["mask_embed_proj.0.weight"] = torch.zeros(3, 24)
    state["stranger"] = torch.zeros(1)
    with pytest.raises(ExportError) as caught:
        build_model(tiny_config(2), state, "a.pth")
    message = str(caught.value)
    assert "a.pth does not fit the network, 3 keys" in message
    assert "missing: transformer_decoder.norm.bias (24,)" in message
    assert "unexpected: stranger (1,)" in message
    assert "wrong shape: mask_embed_proj.0.weight is (3, 24), expected (12, 24)" in message


def test_another_network_is_told_apart():
    with raises(ExportError, "not-a-checkpoint", "projection_layer"):
        infer_config({"layer.weight": torch.zeros(1)}, (16, 16, 16), heads=4)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("config.heads", "4"),
        ("config.heads", True),
        ("config.window_hwd", [16, 16]),
        ("config.features", 4),
        ("spacing_hwd_mm", [2.0, 2.0]),
        ("spacing_hwd_mm", 2.0),
        ("spacing_hwd_mm", "2 2 3"),
        ("spacing_hwd_mm", torch.tensor(SPACING)),
    ],
)
def test_entries_of_a_wrong_type_are_named(tmp_path, entry, value):
    settings = tiny_config(2).to_dict()
    entries = {"config": settings, "spacing_hwd_mm": list(SPACING)}
    *folder, name = entry.split(".")
    (settings if folder else entries)[name] = value
    torch.save({"model_state_dict": plain_state(), **entries}, tmp_path / "a.pth")
    with raises(ExportError, "checkpoint-entry-invalid", "a.pth", entry):
        load_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["heads", "ffn", "features", "in_channels"])
def test_settings_are_positive(name):
    value = (4, 0, 8) if name == "features" else 0
    with raises(ExportError, "config-invalid", name):
        dataclasses.replace(tiny_config(2), **{name: value})


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_a_spacing_is_positive_wherever_it_is_from(tmp_path, wrong):
    spacing = (2.0, wrong, 3.0)
    save_checkpoint(tmp_path / "a.pth", tiny_checkpoint(2).model, spacing)
    torch.save({"model_state_dict": plain_state()}, tmp_path / "b.pth")
    with raises(ExportError, "checkpoint-spacing-invalid", "a.pth"):
        load_checkpoint(tmp_path / "a.pth")
    with raises(ExportError, "checkpoint-spacing-invalid", "b.pth"):
        load_checkpoint(
            tmp_path / "b.pth", window_hwd=(16, 16, 16), spacing_hwd_mm=spacing, heads=4
        )


def test_settings_of_some_training_are_passed_over(tmp_path):
    entries = {"config": {"lr": 1e-4, "epochs": 9}, "spacing_hwd_mm": SPACING}
    torch.save({"model_state_dict": plain_state(), **entries}, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth", window_hwd=(16, 16, 16), heads=4)
    assert loaded.model.config == tiny_config(2)


def test_settings_of_network_and_training_are_not_mixed(tmp_path):
    entries = {"config": {"heads": 4, "lr": 1e-4}, "spacing_hwd_mm": SPACING}
    torch.save({"model_state_dict": plain_state(), **entries}, tmp_path / "a.pth")
    with raises(ExportError, "config-mixed", "a.pth", "lr"):
        load_checkpoint(tmp_path / "a.pth", window_hwd=(16, 16, 16))


def test_settings_that_are_not_stored_are_read_off_the_weights(tmp_path):
    entries = {"config": {"heads": 4}, "spacing_hwd_mm": SPACING}
    torch.save({"model_state_dict": plain_state(), **entries}, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth", window_hwd=(16, 16, 16))
    assert loaded.model.config == tiny_config(2)
    assert loaded.remarks == ()


@pytest.mark.parametrize("nested", [False, True])
def test_other_weights_in_the_file_are_told(tmp_path, nested):
    model = tiny_checkpoint(2).model
    save_checkpoint(tmp_path / "a.pth", model, SPACING)
    data = torch.load(tmp_path / "a.pth", weights_only=True)
    averaged = {f"module.{key}": tensor + 1 for key, tensor in model.state_dict().items()}
    data["ema_state_dict"] = {"decay": 0.99, "shadow": averaged} if nested else averaged
    data["optimizer_state_dict"] = torch.optim.Adam(model.parameters()).state_dict()
    torch.save(data, tmp_path / "a.pth")
    loaded = load_checkpoint(tmp_path / "a.pth")
    assert same_weights(loaded.model)
    (remark,) = loaded.remarks
    for word in ("a.pth", "model_state_dict", "ema_state_dict"):
        assert word in remark
    assert "optimizer" not in remark


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"model_state_dict": Evil()}, path)
    with raises(ExportError, "checkpoint-unreadable"):
        load_checkpoint(path)
    assert "must not run" not in capsys.readouterr().out


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "a.pth"
    with raises(MissingFileError, "checkpoint-file-missing"):
        load_checkpoint(path)
    path.write_bytes(b"no checkpoint at all")
    with raises(ExportError, "checkpoint-unreadable"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ExportError):
        load_checkpoint(path)
    torch.save({"weights": {}}, path)
    with raises(ExportError, "not-a-checkpoint"):
        load_checkpoint(path)
