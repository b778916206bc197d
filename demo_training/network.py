"""What training does differently from running: faster norms, an eased activation, image/255."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from demo_training.classes import QUERIES
from demo_training.sampling import Sample
from medals_export.model import MedalS, ModelConfig


class BatchOneInstanceNorm(nn.InstanceNorm3d):
    """InstanceNorm3d for a batch of one, computed as batch norm.

    With one sample the statistics are the same, and batch norm has a much faster backward pass on a
    CPU (62% of a training step went into instance norm's).
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch names it so
        """Normalize `(1, C, H, W, D)`."""
        if input.shape[0] != 1:
            raise ValueError(f"this norm is for a batch of one, got {input.shape[0]}")
        return nn.functional.batch_norm(
            input, None, None, self.weight, self.bias, training=True, momentum=0.0, eps=self.eps
        )


def use_fast_norms(model: nn.Module) -> None:
    """Let every InstanceNorm3d of the model compute as batch norm; parameters stay."""
    for module in model.modules():
        if type(module) is nn.InstanceNorm3d:
            module.__class__ = BatchOneInstanceNorm


class Learner(nn.Module):
    """The network with its learned text embeddings.

    Images are 0..1 here; `export_state` folds the factor 255 into the first convolution.

    `T >= -0.17` because its last activation is a GELU, and `F_r` is hardly ever negative, so
    negative logits need large features: the refiner's norm starts with the gain `refiner_gain`, and
    the layer before `T` with smaller weights, where the GELU is nearly linear.
    """

    def __init__(self, config: ModelConfig, refiner_gain: float = 6.0) -> None:
        super().__init__()
        self.config = config
        self.model = MedalS(config)
        use_fast_norms(self.model)
        self.embeddings = nn.Parameter(torch.randn(len(QUERIES), config.text_dim))
        norm = self.model.fusion_conv.convs[0].norm
        if not isinstance(norm, nn.InstanceNorm3d) or norm.weight is None:
            raise TypeError("the refiner's norm must be an affine InstanceNorm3d")
        nn.init.constant_(norm.weight, refiner_gain)
        for block in self.model.modules():
            if isinstance(block, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(block.weight, a=0.01)
                if block.bias is not None:
                    nn.init.zeros_(block.bias)
        last = self.model.mask_embed_proj[-2]
        if not isinstance(last, nn.Linear):
            raise TypeError("the layer before the last activation must be linear")
        with torch.no_grad():
            last.weight.mul_(2 / refiner_gain)

    def forward(self, sample: Sample, ease: float = 0.0) -> Tensor:
        """Logits `(N, H, W, D)` of one window.

        `ease` mixes the last activation of the mask embedding with its input: the network of the
        paper at 0, a linear one at 1. Starting linear keeps the queries of rare classes alive.
        """
        model = self.model
        image = sample.image.contiguous(memory_format=torch.channels_last_3d)
        features, tokens = model.encode(image, sample.foreground)
        queries = self.embeddings[sample.rows]
        h, w, d = (size // self.config.stride for size in sample.image.shape[2:])
        if ease > 0:
            adapted = self._eased(tokens, queries, (h, w, d), ease)
        else:
            adapted = model.adapt(tokens, queries, (h, w, d))
        prompts = None if sample.prompts is None else sample.prompts[None]
        logits: Tensor = model.refine(features, adapted, prompts)[0]
        return logits

    def _eased(
        self,
        tokens: Tensor,
        queries: Tensor,
        grid: tuple[int, int, int],
        ease: float,
    ) -> Tensor:
        last = self.model.mask_embed_proj[-1]

        def mix(_module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            return (1 - ease) * output + ease * inputs[0]

        handle = last.register_forward_hook(mix)
        try:
            return self.model.adapt(tokens, queries, grid)
        finally:
            handle.remove()


class Average:
    """Exponential moving average of a learner's weights."""

    def __init__(self, learner: Learner, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.learner = copy.deepcopy(learner).requires_grad_(False)

    @torch.no_grad()
    def update(self, learner: Learner) -> None:
        """Move towards the learner; faster in the first steps."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        own: Iterable[Tensor] = self.learner.parameters()
        torch._foreach_lerp_(list(own), list(learner.parameters()), 1 - decay)


def export_state(learner: Learner) -> dict[str, Tensor]:
    """State dict of the specified network, for images in 0..255."""
    state = {k: v.detach().clone().contiguous() for k, v in learner.model.state_dict().items()}
    first = "backbone.encoder.stages.0.0.convs.0.conv.weight"
    state[first][:, 0] /= 255
    return state


def load_exported(learner: Learner, state: dict[str, Tensor]) -> None:
    """Load what `export_state` gave, for images in 0..1."""
    state = {k: v.clone() for k, v in state.items()}
    state["backbone.encoder.stages.0.0.convs.0.conv.weight"][:, 0] *= 255
    learner.model.load_state_dict(state)
