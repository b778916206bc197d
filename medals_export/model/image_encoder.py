"""The convolutional U-Net that turns a window into per-voxel features and encoder stages.

Module names are those of the released checkpoints, so that weights load key for key.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from medals_export.model.config import ModelConfig


class ConvBlock(nn.Module):
    """Convolution 3x3x3, InstanceNorm, LeakyReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels_in, channels_out, 3, stride=stride, padding=1)
        self.norm = nn.InstanceNorm3d(channels_out, eps=1e-5, affine=True)
        self.activation = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, H, W, D)` to `(B, C_out, H/stride, W/stride, D/stride)`."""
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class ConvStack(nn.Module):
    """Convolution blocks in a row; the first may halve the grid."""

    def __init__(self, channels_in: int, channels_out: int, count: int, stride: int = 1) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            ConvBlock(channels_in, channels_out, stride),
            *(ConvBlock(channels_out, channels_out) for _ in range(count - 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks one after another."""
        out: Tensor = self.convs(x)
        return out


class Encoder(nn.Module):
    """Downward path: one stack a stage, stride 1 for the first and 2 for the rest."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = (config.in_channels, *config.features)
        self.stages = nn.ModuleList(
            nn.Sequential(ConvStack(low, high, config.convs_per_stage, stride=1 if i == 0 else 2))
            for i, (low, high) in enumerate(pairwise(widths))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return every stage's feature map, finest first."""
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        return skips


class Decoder(nn.Module):
    """Upward path: transposed convolution, skip connection, stack."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        steps = list(pairwise(reversed(config.features)))
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(low, high, 2, stride=2) for low, high in steps
        )
        self.stages = nn.ModuleList(
            ConvStack(2 * high, high, config.convs_per_stage) for _, high in steps
        )

    def forward(self, skips: list[Tensor]) -> Tensor:
        """Return the per-voxel features `F (B, C, H, W, D)`."""
        x = skips[-1]
        for up, stage, skip in zip(
            self.transpconvs, self.stages, reversed(skips[:-1]), strict=True
        ):
            x = stage(torch.cat([up(x), skip], dim=1))
        return x


class UNet(nn.Module):
    """Encoder and decoder of the released `backbone`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """`(B, 2, H, W, D)` to all encoder stages and the per-voxel features."""
        skips = self.encoder(x)
        return skips, self.decoder(skips)


def pool_stages(skips: list[Tensor]) -> Tensor:
    """Average-pool every encoder stage to the coarsest grid and join the channels.

    A mean over thousands of voxels is no sum to take in half precision, so it is float32 always.

    Returns
    -------
    Tensor
        Tokens `(B, h*w*d, sum of channels)`, flattened in the order (h, w, d).
    """
    last = len(skips) - 1
    pooled = [
        skip.float() if i == last else nn.functional.avg_pool3d(skip.float(), 2 ** (last - i))
        for i, skip in enumerate(skips)
    ]
    return torch.cat(pooled, dim=1).flatten(2).transpose(1, 2)
