"""PyTorch in fp32 as the reference that `medals_rt.tools.verify` holds runners to.

The network's own methods are called, not the modules that were traced for the export: what the
export has made of them is what is being checked.
"""

import copy
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, cat

from medals_export.arithmetic import ARITHMETICS, FP32
from medals_export.checkpoint import Checkpoint, load_checkpoint
from medals_export.graph_plans import graph_plans
from medals_export.half_storage import round_weights_to_fp16
from medals_export.model import MedalS
from medals_export.model.refiner import mask_logits
from medals_export.onnx_graphs import trace
from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import (
    FOLDED_REFINERS,
    GraphName,
    SourceRecord,
    TensorRecord,
)
from medals_rt.common.choices import StageNumber
from medals_rt.common.errors import InputError, RunnerError
from medals_rt.common.typing import Array
from medals_rt.inference.graph_chains import SingleGraphs
from medals_rt.inference.network import Network, StageNetwork
from medals_rt.runners.base import Device, Runner, TensorSpec

_NOT_CHECKED = (
    "not checked: the text embeddings and which class each is of, which are no part of the "
    "checkpoints; the reference takes the bundle's own"
)

AnyPath = str | os.PathLike[str]


class TorchReference:
    """A bundle's checkpoints in PyTorch, fp32, on the CPU; see `medals_rt.tools.verify.Reference`.

    Where a bundle computes in fp32 and only stores its weights in fp16, single graphs are compared
    with weights rounded alike, so that a tolerance of 1e-4 is one of arithmetic. Whole
    cases are always compared with the checkpoint's own weights.

    Parameters
    ----------
    bundle
        What is to be verified.
    stage1, stage2
        Checkpoints of the coarse and the fine network, loaded or as paths.
    threads
        For PyTorch, for the whole process; None leaves its own choice.

    Raises
    ------
    MissingFileError, ExportError
        If a checkpoint is missing or can't be loaded.
    InputError
        If it is one for another window, spacing or width of text embeddings.
    """

    independent = True

    def __init__(
        self,
        bundle: Bundle,
        stage1: Checkpoint | AnyPath,
        stage2: Checkpoint | AnyPath,
        *,
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._bundle = bundle
        sources = bundle.manifest.sources
        self._checkpoints: dict[StageNumber, Checkpoint] = {
            1: _load(bundle, 1, stage1),
            2: _load(bundle, 2, stage2),
        }
        self.name = f"PyTorch {torch.__version__} fp32"
        self.notes = (
            *_other_file("coarse", self._checkpoints[1].source, sources.coarse),
            *_other_file("fine", self._checkpoints[2].source, sources.fine),
            *(text for each in self._checkpoints.values() for text in each.remarks),
            _NOT_CHECKED,
        )

    def open_graph(self, stage: StageNumber, graph: GraphName) -> "TorchRunner":
        """Open what a graph has to compute, with the weights as the bundle stores them."""
        return TorchRunner(self._bundle, stage, graph, self._stored[stage])

    def open_network(self, stage: StageNumber) -> Network:
        """Open a whole stage, with the checkpoint's own weights."""
        network = self._checkpoints[stage].model
        graphs = SingleGraphs(lambda name: TorchRunner(self._bundle, stage, name, network))
        return StageNetwork(self._bundle.stage_spec(stage), graphs, "the reference")

    def graph_file(self, stage: StageNumber, graph: GraphName, folder: Path) -> Path:
        """Export a graph of the checkpoint again, in the bundle's arithmetic; return the file."""
        network = self._checkpoints[stage].model
        arithmetic = ARITHMETICS[self._bundle.precision]
        if arithmetic is FP32:
            network = self._stored[stage]
        plans = [each for each in graph_plans(network, arithmetic) if each.name == graph]
        ((_, model),) = trace(plans)
        path = folder / f"{graph}.onnx"
        path.write_bytes(model.SerializeToString(deterministic=True))
        return path

    @cached_property
    def _stored(self) -> dict[StageNumber, MedalS]:
        """The networks with weights as the bundle stores them."""
        networks = {stage: each.model for stage, each in self._checkpoints.items()}
        manifest = self._bundle.manifest
        if manifest.weights != "fp16" or manifest.precision != "fp32":
            return networks
        rounded = {stage: copy.deepcopy(network) for stage, network in networks.items()}
        for network in rounded.values():
            round_weights_to_fp16(network)
        return rounded


class TorchRunner(Runner):
    """One graph's part of a network in eager PyTorch; see `medals_rt.runners.base.Runner`."""

    kind: Any = "pytorch"  # never a runner of the run time, so it is not among `RunnerKind`
    device: Device = "cpu"
    precision: Any = "fp32"
    notes: tuple[str, ...] = ()

    def __init__(
        self, bundle: Bundle, stage: StageNumber, graph: GraphName, network: MedalS
    ) -> None:
        record = bundle.graph(stage, graph)
        self.name = f"{graph} of stage {stage}"
        self.version = str(torch.__version__)
        self.threads = torch.get_num_threads()
        self.inputs = _in_fp32(record.inputs)
        self.outputs = _in_fp32(record.outputs)
        self._compute = graph_function(network, graph)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Compute all outputs; see `Runner.run`."""
        try:
            tensors = [torch.from_numpy(np.ascontiguousarray(feeds[i.name])) for i in self.inputs]
            with torch.inference_mode():
                found = self._compute(*tensors)
        except RuntimeError as error:
            raise RunnerError(
                f"PyTorch failed in {self.name}: {error}", code="run-failed"
            ) from error
        return {spec.name: t.numpy() for spec, t in zip(self.outputs, found, strict=True)}

    def close(self) -> None:
        """Nothing to free: the network belongs to the reference."""


def graph_function(network: MedalS, graph: GraphName) -> Callable[..., tuple[Tensor, ...]]:
    """Return what a graph has to compute as a function of its inputs, in their order."""

    def encode(image: Tensor, foreground: Tensor) -> tuple[Tensor, ...]:
        features, image_embedding = network.encode(image, foreground)
        return features, image_embedding[0]

    def adapt(image_embedding: Tensor, queries: Tensor) -> tuple[Tensor, ...]:
        return (network.adapt(image_embedding[None], queries)[0],)

    def refine(features: Tensor, adapted: Tensor, prompts: Tensor) -> tuple[Tensor, ...]:
        return (network.refine(features, adapted[None], prompts[None])[0].sigmoid_(),)

    def refine_text_only(features: Tensor, adapted: Tensor) -> tuple[Tensor, ...]:
        return (network.refine(features, adapted[None])[0].sigmoid_(),)

    def fuse(features: Tensor, prompt_features: Tensor) -> tuple[Tensor, ...]:
        return (network.fusion_conv(cat([features, prompt_features], dim=1)),)

    def fuse_text_only(features: Tensor) -> tuple[Tensor, ...]:
        return fuse(features, torch.zeros_like(features))

    def classify(refined: Tensor, adapted: Tensor) -> tuple[Tensor, ...]:
        return (mask_logits(refined, adapted[None])[0].sigmoid_(),)

    known: dict[GraphName, Callable[..., tuple[Tensor, ...]]] = {
        "image_encoder": encode,
        "query_decoder": adapt,
        "refiner": refine,
        "refiner_text_only": refine_text_only,
        "fusion": fuse,
        "fusion_text_only": fuse_text_only,
        "classifier": classify,
        **dict.fromkeys(FOLDED_REFINERS.values(), refine),
    }
    return known[graph]


def _in_fp32(records: tuple[TensorRecord, ...]) -> tuple[TensorSpec, ...]:
    """Return a graph's inputs or outputs as PyTorch has them, whatever the graph's precision."""
    return tuple(TensorSpec(each.name, each.shape, "float32") for each in records)


def _load(bundle: Bundle, stage: StageNumber, given: Checkpoint | AnyPath) -> Checkpoint:
    """Load a checkpoint as one of the bundle's stage; what its name leaves open is the stage's."""
    spec = bundle.stage_spec(stage)
    if isinstance(given, Checkpoint):
        checkpoint = given
    else:
        sources = bundle.manifest.sources
        source = sources.fine if spec.is_fine else sources.coarse
        checkpoint = load_checkpoint(Path(given), otherwise=spec, heads=source.heads)
    config = checkpoint.model.config
    dim = bundle.manifest.embeddings.dim
    if config.window_hwd != spec.window_hwd or config.text_dim != dim:
        raise InputError(
            f"{checkpoint.source.file} is for windows of {config.window_hwd} and text embeddings "
            f"of {config.text_dim}, stage {stage} of the bundle for {spec.window_hwd} and {dim}; "
            "name the checkpoints it was exported from, coarse first",
            code="checkpoint-window",
        )
    if not np.allclose(checkpoint.spacing_hwd_mm, spec.spacing_hwd_mm, rtol=1e-6, atol=0):
        raise InputError(
            f"{checkpoint.source.file} is for a spacing of {checkpoint.spacing_hwd_mm} mm, stage "
            f"{stage} of the bundle for {spec.spacing_hwd_mm}; export the bundle again, or name "
            "the checkpoints it was exported from",
            code="checkpoint-spacing",
        )
    return checkpoint


def _other_file(stage: str, found: SourceRecord, recorded: SourceRecord) -> tuple[str, ...]:
    if found.sha256 == recorded.sha256:
        return ()
    note = (
        f"{found.file} is not the file that the {stage} stage was exported from ({recorded.file}, "
        f"SHA-256 {recorded.sha256[:12]}...); its weights are the reference all the same"
    )
    return (note,)
