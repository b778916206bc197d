"""The parts of a network that become graphs, one module a graph.

They are written for what inference libraries do well: products over classes are matrix products
over flattened voxels, and no module looks at the number of prompts, so that tracing leaves it free.

In half precision the inputs are brought to it here, the sigmoid is float32, and outputs are what
`Arithmetic` says. In fp32 all casts are of no effect and leave no trace in the graph. Where two
convolutions' results are added, that is in half precision: libraries do it inside the convolution.
"""

from typing import cast

import torch
from torch import Tensor, nn

from medals_export.arithmetic import Arithmetic
from medals_export.model import MedalS
from medals_export.model.image_encoder import ConvBlock


class ImageEncoderGraph(nn.Module):
    """`image`, `foreground` to `features`, `image_embedding`."""

    def __init__(self, network: MedalS, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.network = network
        self.arithmetic = arithmetic

    def forward(self, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
        """`(1, 1, H, W, D)` twice to `(1, C, H, W, D)` and `(L, dim)`."""
        compute, handed_on = self.arithmetic.compute, self.arithmetic.handed_on
        features, image_embedding = self.network.encode(image.to(compute), foreground.to(compute))
        return features.to(handed_on), image_embedding.squeeze(0).to(handed_on)


class QueryDecoderGraph(nn.Module):
    """`image_embedding`, `queries` to `adapted_queries`."""

    def __init__(self, network: MedalS) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_embedding: Tensor, queries: Tensor) -> Tensor:
        """`(L, dim)`, `(N, dim)` to `T (N, C)`."""
        adapted = self.network.adapt(image_embedding.unsqueeze(0), queries.unsqueeze(0))
        return adapted.squeeze(0).float()


class Fusion(nn.Module):
    """The refiner's convolution block, its weights cut into what reads `F` and what reads `F_a`.

    Attributes
    ----------
    feature_weight, prompt_weight
        `(C, C, 3, 3, 3)` each.
    """

    feature_weight: Tensor
    prompt_weight: Tensor

    def __init__(self, network: MedalS, compute: torch.dtype, *, with_prompts: bool) -> None:
        super().__init__()
        block = cast("ConvBlock", network.fusion_conv.convs[0])
        weight, channels = block.conv.weight.detach(), network.config.channels
        self.register_buffer("feature_weight", weight[:, :channels].clone())
        if with_prompts:
            self.register_buffer("prompt_weight", weight[:, channels:].to(compute, copy=True))
        self.bias = block.conv.bias
        self.norm = block.norm
        self.activation = block.activation

    def of_features(self, features: Tensor) -> Tensor:
        """Convolve the features' half: `(1, C, H, W, D)` to the same shape."""
        features = features.to(self.feature_weight.dtype)
        return nn.functional.conv3d(features, self.feature_weight, self.bias, padding=1)

    def add_prompts(self, convolved: Tensor, prompts: Tensor, prompt_weight: Tensor) -> Tensor:
        """Add the convolution of the prompts' half to the features', in the type of that."""
        more = nn.functional.conv3d(prompts.to(prompt_weight.dtype), prompt_weight, padding=1)
        return convolved + more.to(convolved.dtype)

    def finish(self, convolved: Tensor) -> Tensor:
        """Norm and activation: `F_r (1, C, H, W, D)`."""
        refined: Tensor = self.activation(self.norm(convolved))
        return refined


class FusionGraph(nn.Module):
    """`features`, `prompt_features` to `refined`: `F_r` where `F_a` is known already.

    One convolution of both, but where only that of the features is quantized.
    """

    def __init__(self, network: MedalS, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.fusion: nn.Module = network.fusion_conv
        block = cast("ConvBlock", network.fusion_conv.convs[0])
        if block.conv.weight.dtype is not arithmetic.compute:
            self.fusion = Fusion(network, arithmetic.compute, with_prompts=True)
        self.arithmetic = arithmetic

    def forward(self, features: Tensor, prompt_features: Tensor) -> Tensor:
        """`(1, C, H, W, D)` twice to `(1, C, H, W, D)`."""
        compute, handed_on = self.arithmetic.compute, self.arithmetic.handed_on
        if isinstance(self.fusion, Fusion):
            convolved = self.fusion.of_features(features)
            weight = self.fusion.prompt_weight
            convolved = self.fusion.add_prompts(convolved, prompt_features, weight)
            return self.fusion.finish(convolved).to(handed_on)
        joined = torch.cat([features.to(compute), prompt_features.to(compute)], dim=1)
        refined: Tensor = self.fusion(joined)
        return refined.to(handed_on)


class TextOnlyFusionGraph(nn.Module):
    """`features` to `refined`: `F_r` for `S_p = 0`.

    It holds only the half of the convolution's weights that reads the features.
    """

    def __init__(self, network: MedalS, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.fusion = Fusion(network, arithmetic.compute, with_prompts=False)
        self.arithmetic = arithmetic

    def forward(self, features: Tensor) -> Tensor:
        """`(1, C, H, W, D)` to the same shape."""
        refined = self.fusion.finish(self.fusion.of_features(features))
        return refined.to(self.arithmetic.handed_on)


class ClassifierGraph(nn.Module):
    """`refined`, `adapted_queries` to `probabilities`: class chunks share one `F_r`."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.compute = arithmetic.compute

    def forward(self, refined: Tensor, adapted_queries: Tensor) -> Tensor:
        """`(1, C, H, W, D)`, `(N, C)` to `(N, H, W, D)`."""
        voxels = refined.to(self.compute).flatten(2).squeeze(0)
        logits = adapted_queries.to(self.compute) @ voxels
        return logits.reshape(-1, *refined.shape[2:]).float().sigmoid()


class RefinerGraph(nn.Module):
    """`features`, `adapted_queries`, `prompts` to `probabilities`."""

    def __init__(self, network: MedalS, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.fuse = FusionGraph(network, arithmetic)
        self.classify = ClassifierGraph(arithmetic)
        self.compute = arithmetic.compute

    def forward(self, features: Tensor, adapted_queries: Tensor, prompts: Tensor) -> Tensor:
        """`(1, C, H, W, D)`, `(N, C)`, `(N, H, W, D)` to `(N, H, W, D)`."""
        adapted = adapted_queries.to(self.compute)
        spread = (adapted.t() @ prompts.to(self.compute).flatten(1)).reshape(features.shape)
        probabilities: Tensor = self.classify(self.fuse(features, spread), adapted_queries)
        return probabilities


class TextOnlyRefinerGraph(nn.Module):
    """`features`, `adapted_queries` to `probabilities`: the refiner for `S_p = 0`."""

    def __init__(self, network: MedalS, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.fuse = TextOnlyFusionGraph(network, arithmetic)
        self.classify = ClassifierGraph(arithmetic)

    def forward(self, features: Tensor, adapted_queries: Tensor) -> Tensor:
        """`(1, C, H, W, D)`, `(N, C)` to `(N, H, W, D)`."""
        probabilities: Tensor = self.classify(self.fuse(features), adapted_queries)
        return probabilities


class FoldedRefinerGraph(nn.Module):
    """The refiner for few prompts, without `F_a`.

    A convolution of `F_a = T^T S_p` is one of `S_p` itself with the weights
    `K_n = sum_c W_a[:, c] T[n, c]`: as many channels as prompts instead of C, and no array of C
    channels to write and read. Libraries want such a convolution's channel count fixed.
    """

    def __init__(self, network: MedalS, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.fusion = Fusion(network, arithmetic.compute, with_prompts=True)
        self.classify = ClassifierGraph(arithmetic)

    def forward(self, features: Tensor, adapted_queries: Tensor, prompts: Tensor) -> Tensor:
        """`(1, C, H, W, D)`, `(w, C)`, `(w, H, W, D)` to `(w, H, W, D)`."""
        weight = self.fusion.prompt_weight
        folded = adapted_queries.to(weight.dtype) @ weight.flatten(2)
        folded = folded.reshape(weight.shape[0], -1, *weight.shape[2:])
        convolved = self.fusion.of_features(features)
        prompts = prompts.to(weight.dtype).unsqueeze(0)
        convolved = self.fusion.add_prompts(convolved, prompts, folded)
        probabilities: Tensor = self.classify(self.fusion.finish(convolved), adapted_queries)
        return probabilities
