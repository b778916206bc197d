"""Released or trained checkpoints (`.pth`) to networks, with every key accounted for."""

import dataclasses
import json
import math
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec
import torch
from torch import Tensor

from medals_export.model import MedalS, ModelConfig
from medals_export.model.query_decoder import sinusoidal_position_encoding
from medals_rt.bundle.manifest import SourceRecord, file_sha256
from medals_rt.bundle.released import SPACING_ENTRY, parse_released_name
from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.errors import ExportError, MissingFileError

Shape3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]
T = TypeVar("T")

_RELEASED_HEADS = 8
STATE_ENTRY = "model_state_dict"
_HEADS_ASSUMED = (
    f"{_RELEASED_HEADS} attention heads are assumed, as the released networks have; weights don't "
    "tell: if it has others, export with --stage1-heads or --stage2-heads"
)
_REMARKS = ("config", SPACING_ENTRY)
_DEEP_SUPERVISION = re.compile("mid_mask_embed_proj")
_WRAPPED = re.compile(r"\A(?:(?:module|_orig_mod)\.)+")  # by DataParallel, by torch.compile
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SETTINGS = get_type_hints(ModelConfig)
_MOST_LISTED = 10
# a released convolution block stores its weights twice: by name, and in the sequence it runs
_TWINS = (("all_modules.0.", "conv."), ("all_modules.1.", "norm."))


@dataclass(frozen=True)
class Checkpoint:
    """A network with its weights and what the export needs to know beside it.

    Attributes
    ----------
    model
        In evaluation mode, float32, on the CPU.
    spacing_hwd_mm
        The spacing that it was trained for.
    source
        File name and SHA-256 of the checkpoint, for the manifest.
    remarks
        What had to be assumed of it, in sentences for the user.
    """

    model: MedalS
    spacing_hwd_mm: Spacing3
    source: SourceRecord
    remarks: tuple[str, ...] = ()


def load_checkpoint(
    path: str | os.PathLike[str],
    config: ModelConfig | None = None,
    *,
    window_hwd: Shape3 | None = None,
    spacing_hwd_mm: Spacing3 | None = None,
    heads: int | None = None,
    otherwise: StageSpec | None = None,
) -> Checkpoint:
    """Load a checkpoint, `.pth` or `.safetensors`; no code in it is run (`weights_only=True`).

    What `config` and the other arguments leave open comes from the checkpoint's own entries
    `config` and `spacing_hwd_mm` (those that this package trains have them), else from the shapes
    of the weights and from the file's name in the manner of the released ones
    (`..._crop_size_H_W_D_spacing_a_b_c_step_N.pth`), last of all from `otherwise`, the stage of a
    bundle that the checkpoint is compared with. What arguments, content and name say of one thing
    must agree. The number of attention heads is neither in shapes nor in names: where nothing else
    says it the released 8 are assumed, with a remark.

    Raises
    ------
    MissingFileError
        If there is no such file.
    ExportError
        If it is no checkpoint, window or spacing can't be found out or are stated twice with
        different values, or keys are missing, unexpected or of a wrong shape: all are listed.
    """
    file = Path(path)
    if not file.is_file():
        raise MissingFileError(f"there is no checkpoint {file}", code="checkpoint-file-missing")
    data = read_checkpoint(file)
    state = normalize_keys(data[STATE_ENTRY], file.name)
    named_window, named_spacing = parse_released_name(file.name)
    stored = _stored_settings(data, file.name) if config is None else config.to_dict()
    window = _stated(
        file.name,
        "window",
        given=window_hwd,
        content=stored.get("window_hwd"),
        name=named_window,
    ) or (None if otherwise is None else otherwise.window_hwd)
    spacing = _stated(
        file.name,
        "spacing",
        given=spacing_hwd_mm,
        content=_stored_spacing(data, file.name),
        name=named_spacing,
    ) or (None if otherwise is None else otherwise.spacing_hwd_mm)
    known_heads = _stated(
        file.name,
        "heads",
        given=heads,
        content=stored.get("heads"),
        name=None,
    )
    if window is None:
        raise ExportError(
            f"{file.name} does not say its window (no 'config' in it, no 'crop_size_H_W_D' in "
            "its name): name the file so, or give window_hwd (--stage1-window, --stage2-window)",
            code="checkpoint-without-window",
        )
    told = {**stored, "window_hwd": window, "heads": known_heads or _RELEASED_HEADS}
    config = _complete(told, state)
    if spacing is None:
        raise ExportError(
            f"{file.name} does not say its spacing (no 'spacing_hwd_mm' in it, no "
            "'spacing_a_b_c' in its name): name the file so, or give spacing_hwd_mm "
            "(--stage1-spacing, --stage2-spacing)",
            code="checkpoint-without-spacing",
        )
    if not all(0 < each < math.inf for each in spacing):
        raise ExportError(
            f"the spacing of {file.name} is {spacing}; give three positive numbers of millimeters",
            code="checkpoint-spacing-invalid",
        )
    model = build_model(config, state, file.name)
    remarks = [_HEADS_ASSUMED] if known_heads is None else []
    remarks += _other_weights(data, state)
    source = SourceRecord(file=file.name, sha256=file_sha256(file), heads=heads)
    return Checkpoint(model, spacing, source, tuple(f"{file.name}: {each}" for each in remarks))


def _other_weights(data: Mapping[Any, Any], state: Mapping[str, Tensor]) -> Iterator[str]:
    """Say which entries hold weights of the same names, such as averaged ones."""
    others = [
        str(name)
        for name, entry in data.items()
        if name != STATE_ENTRY and _holds_weights(entry, state)
    ]
    if others:
        yield (
            f"the weights in '{STATE_ENTRY}' are taken, not those in {_listed(others)}; save these "
            f"under '{STATE_ENTRY}' if they are meant"
        )


def _holds_weights(entry: object, state: Mapping[str, Tensor]) -> bool:
    """Whether an entry of a checkpoint is a state dict of the same network, or holds one."""
    return isinstance(entry, dict) and any(
        _WRAPPED.sub("", str(key)) in state or _holds_weights(value, state)
        for key, value in entry.items()
    )


def _stated(
    file: str, what: str, *, given: T | None, content: T | None, name: T | None
) -> T | None:
    """Return what the caller, a checkpoint's content and its name say; None where none does.

    Raises
    ------
    ExportError
        If two of them differ.
    """
    told = {"the options": given, "its content": content, "its name": name}
    known = {source: value for source, value in told.items() if value is not None}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{value} by {source}" for source, value in known.items())
        raise ExportError(
            f"the {what} of {file} is {listed}; leave out or rename what is wrong, or name another "
            "file",
            code=f"{what}-contradiction",
        )
    return next(iter(known.values()), None)


def save_checkpoint(
    path: str | os.PathLike[str], model: MedalS, spacing_hwd_mm: Spacing3
) -> Checkpoint:
    """Write a checkpoint that `load_checkpoint` reads without further arguments."""
    file = Path(path)
    data = {
        STATE_ENTRY: model.state_dict(),
        "config": model.config.to_dict(),
        SPACING_ENTRY: list(spacing_hwd_mm),
    }
    torch.save(data, file)
    return Checkpoint(model, spacing_hwd_mm, SourceRecord(file=file.name, sha256=file_sha256(file)))


def plain_weights(
    state: Mapping[Any, Any],
    name: str,
    *,
    left_out: re.Pattern[str],
    twins: Iterable[tuple[str, str]] = (),
) -> dict[str, Tensor]:
    """Hold the entries of a state dict to what weights are, and return them as float32.

    Keys lose the prefixes that PyTorch puts before those of a wrapped network (`module.`,
    `_orig_mod.`), and the first part of each of `twins` becomes the second; those in which
    `left_out` is found are dropped.

    Raises
    ------
    ExportError
        Listing the entries that are no dense tensors of floating-point numbers (of 16 bits or
        more: those of 8 mean nothing without their scales), or those with values that are not
        finite in float32, which is what they are computed in, or those of one key that differ:
        which of them the network would run is then unknown.
    """
    kept = {key: value for key, value in state.items() if not left_out.search(str(key))}
    strange = [f"{key} ({kind})" for key, value in kept.items() if (kind := _no_weight(key, value))]
    if strange:
        raise ExportError(
            f"{name} holds entries that are no weights: {_listed(strange)}; save a state dict of "
            "dense tensors of floating-point numbers",
            code="no-weights",
        )
    plain: dict[str, Tensor] = {}
    differing: list[str] = []
    for stored_key, value in kept.items():
        key, tensor = _WRAPPED.sub("", stored_key), value.float()
        for twin, single in twins:
            key = key.replace(twin, single)
        known = plain.setdefault(key, tensor)
        if known is not tensor and not torch.equal(known, tensor):
            differing.append(key)
    broken = [key for key, tensor in plain.items() if not tensor.isfinite().all()]
    if broken:
        raise ExportError(
            f"{name} holds values that are not finite in float32: {_listed(broken)}; name an "
            "earlier checkpoint",
            code="weights-not-finite",
        )
    if differing:
        raise ExportError(
            f"{name} stores these weights twice with different values: {_listed(differing)}; save "
            "them once",
            code="weights-contradict",
        )
    return plain


def _no_weight(key: object, value: object) -> str | None:
    """Say what an entry of a state dict is, if it is no weight."""
    if not isinstance(key, str):
        return f"its name is of type {type(key).__name__}"
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.dtype not in _WEIGHT_DTYPES:
        return str(value.dtype)
    if value.layout is not torch.strided:
        return str(value.layout)
    return "without values" if value.is_meta else None


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f", and {more} more" if more > 0 else "")


def normalize_keys(state: Mapping[Any, Any], name: str) -> dict[str, Tensor]:
    """Return a state dict the plain keys of `MedalS`, and its weights in float32.

    Drops deep supervision, and reads `all_modules.0` and `.1` as `conv` and `norm`; see
    `plain_weights`.
    """
    return plain_weights(state, name, left_out=_DEEP_SUPERVISION, twins=_TWINS)


def infer_config(state: Mapping[str, Tensor], window_hwd: Shape3, *, heads: int) -> ModelConfig:
    """Read widths and depths off the shapes of a plain state dict (see `normalize_keys`).

    Raises
    ------
    ExportError
        If a weight that tells them is missing.
    """
    try:
        stages = _count(state, r"backbone\.encoder\.stages\.(\d+)\.")
        first = "backbone.encoder.stages.{}.0.convs.0.conv.weight"
        return ModelConfig(
            window_hwd=window_hwd,
            features=tuple(state[first.format(i)].shape[0] for i in range(stages)),
            convs_per_stage=_count(state, r"backbone\.encoder\.stages\.0\.0\.convs\.(\d+)\."),
            text_dim=state["projection_layer.2.weight"].shape[0],
            decoder_layers=_count(state, r"transformer_decoder\.layers\.(\d+)\."),
            heads=heads,
            ffn=state["transformer_decoder.layers.0.linear1.weight"].shape[0],
            projection_hidden=state["projection_layer.0.weight"].shape[0],
            mask_hidden=state["mask_embed_proj.0.weight"].shape[0],
            in_channels=state[first.format(0)].shape[1],
        )
    except KeyError as error:
        raise ExportError(
            f"this is no Medal S checkpoint: it has no {error.args[0]}, only e.g. "
            f"{', '.join(list(state)[:3]) or 'nothing'}",
            code="not-a-checkpoint",
        ) from error


def build_model(config: ModelConfig, state: Mapping[str, Tensor], name: str) -> MedalS:
    """Make a network and give it the weights of a plain state dict (see `normalize_keys`).

    Raises
    ------
    ExportError
        Listing every missing, unexpected and misshapen key.
    """
    with torch.device("meta"):
        model = MedalS(config)
    check_keys(model.state_dict(), state, name)
    model.load_state_dict(state, assign=True)
    # no weight of the checkpoint, so `assign` leaves it without data
    model.positions = sinusoidal_position_encoding(config.grid_hwd, config.text_dim)
    return model.eval().requires_grad_(requires_grad=False)


def check_keys(model: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str) -> None:
    """Hold the weights of a checkpoint called `name` to a model's own, by key and shape.

    Raises
    ------
    ExportError
        Listing every missing, unexpected and misshapen key.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in model.items()}
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    problems = [f"missing: {key} {expected[key]}" for key in expected if key not in found]
    problems += [f"unexpected: {key} {found[key]}" for key in found if key not in expected]
    problems += [
        f"wrong shape: {key} is {found[key]}, expected {expected[key]}"
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    if problems:
        raise ExportError(
            f"{name} does not fit the network, {len(problems)} keys: {'; '.join(problems)}",
            code="weights-do-not-fit",
        )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = [int(match[1]) for key in state if (match := re.match(pattern, key))]
    return max(found, default=-1) + 1


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Read a `.pth` that holds `model_state_dict`; no code in it is run (`weights_only=True`).

    A `.safetensors` holds the state dict itself; its other entries are JSON in the header.

    Raises
    ------
    ExportError
        If it can't be read so, or holds no such entry.
    """
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        with warnings.catch_warnings():
            # an unusual pickle protocol either loads, or fails and is reported
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            data = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ExportError(
            f"{file} is no checkpoint that can be read safely: {reason}",
            code="checkpoint-unreadable",
        ) from error
    if not isinstance(data, dict) or not isinstance(data.get(STATE_ENTRY), dict):
        found = ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise ExportError(
            f"{file} has no '{STATE_ENTRY}'; found: {found[:200]}", code="not-a-checkpoint"
        )
    return data


def _read_safetensors(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            remarks = opened.metadata() or {}
            entries = {name: json.loads(remarks[name]) for name in _REMARKS if name in remarks}
            names = opened.keys()
            state = {name: opened.get_tensor(name) for name in names}
            return {STATE_ENTRY: state, **entries}
    except (SafetensorError, ValueError, OSError) as error:
        raise ExportError(
            f"{file} is no checkpoint that can be read: {error}", code="checkpoint-unreadable"
        ) from error


def _stored_spacing(data: Mapping[str, Any], file: str) -> Spacing3 | None:
    value = data.get(SPACING_ENTRY)
    return None if value is None else _typed(file, SPACING_ENTRY, value, Spacing3)


def _stored_settings(data: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return those of `ModelConfig` that an entry `config` holds; none if it is another's.

    Raises
    ------
    ExportError
        If one is of a wrong type, or others are among them: whether they mean the network's can't
        be told.
    """
    config = data.get("config")
    if not isinstance(config, dict) or not _SETTINGS.keys() & config.keys():
        return {}
    others = [str(name) for name in config if name not in _SETTINGS]
    if others:
        raise ExportError(
            f"the entry 'config' of {file} holds {_listed(others)} beside settings of the network; "
            "save those under another name, or without 'config'",
            code="config-mixed",
        )
    return {
        name: _typed(file, f"config.{name}", value, _SETTINGS[name])
        for name, value in config.items()
    }


def _typed(file: str, entry: str, value: object, kind: Any) -> Any:
    """Hold an entry of a checkpoint to its type; lists become tuples.

    Raises
    ------
    ExportError
        It is of another type.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ExportError(
            f"the entry '{entry}' of {file} is wrong: {error}; save it as it should be, or leave "
            "it out",
            code="checkpoint-entry-invalid",
        ) from error


def _complete(told: dict[str, Any], state: Mapping[str, Tensor]) -> ModelConfig:
    """Read the settings that nobody told off the weights."""
    if told.keys() == _SETTINGS.keys():
        return ModelConfig(**told)
    inferred = infer_config(state, told["window_hwd"], heads=told["heads"])
    return dataclasses.replace(inferred, **told)
