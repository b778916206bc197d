"""The network as PyTorch runs it eagerly, under autocast: what a speed is compared with.

Nothing is exported, folded or joined: the image encoder, the query decoder and the whole refiner of
every pass, with prompts of zeros where there are none, as the released code does it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import torch
from torch.utils.dlpack import from_dlpack

from medals_export.checkpoint import load_checkpoint
from medals_export.model import MedalS
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.stage_spec import StageSpec
from medals_rt.common.arrays import namespace
from medals_rt.common.choices import STAGE_NAMES, StageNumber
from medals_rt.common.errors import InputError
from medals_rt.common.typing import Array
from medals_rt.inference.network import NetworkInfo, PassInput
from medals_rt.pipeline.segmenter import Segmenter

AnyPath = str | os.PathLike[str]

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class EagerNetwork:
    """One stage's network in eager PyTorch; see `medals_rt.inference.network.Network`.

    It runs on the GPU where PyTorch finds one, and takes and returns NumPy arrays on a processor
    and CuPy's on a GPU (untried there).

    Parameters
    ----------
    spec
        Window and spacing.
    network
        With its weights.
    precision
        "fp32", or "bf16" or "fp16" for autocast.
    device
        "cpu" or "cuda".
    """

    def __init__(self, spec: StageSpec, network: MedalS, precision: str, device: str) -> None:
        self.spec = spec
        self._network = network.to(device)
        self._precision = precision
        self._device = device

    @property
    def info(self) -> NetworkInfo:
        """How the network is run."""
        return NetworkInfo(
            runner="pytorch",
            why="asked for",
            device=self._device,
            precision=self._precision,
            version=str(torch.__version__),
            threads=torch.get_num_threads(),
            notes=(),
        )

    @property
    def array_device(self) -> str:
        """Where arrays must lie."""
        return self._device

    def encode(self, image: Array) -> None:
        """Return None: a pass is always run whole."""

    def predict(self, one: PassInput) -> Iterator[tuple[slice, Array]]:
        """Run one pass over one window; see `Network.predict`. All classes come at once."""
        image, prompts = one.image, one.prompts
        xp = namespace(image)
        if prompts is None:
            foreground = xp.zeros_like(image)
            shape = (one.count, *image.shape[2:])
            channels = xp.zeros(shape, dtype=xp.float32, device=image.device)
        else:
            foreground, channels = prompts.foreground(), prompts.channels(one.count)
        dtype = _AUTOCAST[self._precision]
        tensors = [from_dlpack(each) for each in (image, foreground, one.queries, channels[None])]
        with torch.inference_mode(), torch.autocast(self._device, dtype, enabled=dtype is not None):
            logits = self._network(*tensors)
            probabilities = logits[0, one.wanted].float().sigmoid().contiguous()
        yield one.wanted, xp.from_dlpack(probabilities)

    def prepare(self, count: int, *, prompted: bool) -> None:
        """Do nothing: there is nothing to open."""

    def release(self) -> None:
        """Return what PyTorch keeps on a GPU."""
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Nothing to close: the network goes with this object."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_eager(
    bundle: Bundle,
    stage1: AnyPath,
    stage2: AnyPath,
    *,
    precision: str = "bf16",
    threads: int | None = None,
) -> Segmenter:
    """Open both stages in eager PyTorch; all but the network is the bundle's.

    Parameters
    ----------
    bundle
        Text embeddings, windows and spacings.
    stage1, stage2
        Checkpoints of the coarse and the fine network.
    precision
        "fp32", or "bf16" or "fp16" for autocast.
    threads
        For PyTorch, for the whole process; None leaves its own choice.

    Raises
    ------
    InputError
        The precision is none of these, or a checkpoint is for another window.
    MissingFileError, ExportError
        A checkpoint is missing or can't be loaded.
    """
    if precision not in _AUTOCAST:
        raise InputError(
            f"eager PyTorch runs in {', '.join(_AUTOCAST)}, not {precision!r}",
            code="precision-unknown",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first, second = (
        _network(bundle, number, path, precision, device)
        for number, path in zip(STAGE_NAMES, (stage1, stage2), strict=True)
    )
    return Segmenter(bundle, {1: first, 2: second})


def _network(
    bundle: Bundle, stage: StageNumber, path: AnyPath, precision: str, device: str
) -> EagerNetwork:
    spec = bundle.stage_spec(stage)
    checkpoint = load_checkpoint(Path(path), otherwise=spec)
    if checkpoint.model.config.window_hwd != spec.window_hwd:
        raise InputError(
            f"{checkpoint.source.file} is for windows of {checkpoint.model.config.window_hwd}, "
            f"stage {stage} of the bundle for {spec.window_hwd}; name the coarse one first",
            code="checkpoint-window",
        )
    return EagerNetwork(spec, checkpoint.model, precision, device)
