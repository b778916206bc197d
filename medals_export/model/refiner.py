"""Features and spatial prompts to logits: one convolution and a product with `T`.

`F_a = T^T S_p`, `F_r = ConvBlock([F ; F_a])`, logits `T F_r` (paper, 2.3).
"""

import torch
from torch import Tensor, nn

from medals_export.model.image_encoder import ConvBlock, ConvStack


def spread_prompts(adapted_queries: Tensor, prompts: Tensor) -> Tensor:
    """`F_a`: each voxel gets the sum of the embeddings whose prompts cover it.

    `(B, N, C)` and `(B, N, H, W, D)` to `(B, C, H, W, D)`.
    """
    return torch.einsum("bnc,bnhwd->bchwd", adapted_queries, prompts)


def mask_logits(refined: Tensor, adapted_queries: Tensor) -> Tensor:
    """`T F_r`: `(B, C, H, W, D)` and `(B, N, C)` to `(B, N, H, W, D)`."""
    return torch.einsum("bchwd,bnc->bnhwd", refined, adapted_queries)


def refine(fusion: ConvStack, features: Tensor, adapted: Tensor, prompts: Tensor | None) -> Tensor:
    """Logits `(B, N, H, W, D)`; `prompts=None` means all zeros and costs half the convolution.

    With `S_p = 0` the half of the convolution that reads `F_a` adds nothing, so only the first
    half of its weights is used: the same numbers, not an approximation.
    """
    block = fusion.convs[0]
    if not isinstance(block, ConvBlock):
        raise TypeError(f"the fusion convolution must be one ConvBlock, found {type(block)}")
    if prompts is None:
        channels = features.shape[1]
        weight = block.conv.weight[:, :channels]
        fused = nn.functional.conv3d(features, weight, block.conv.bias, padding=1)
        refined = block.activation(block.norm(fused))
    else:
        refined = fusion(torch.cat([features, spread_prompts(adapted, prompts)], dim=1))
    return mask_logits(refined, adapted)
