"""The numbers that make one Medal S network differ from another."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from medals_rt.common.errors import ExportError

Shape3 = tuple[int, int, int]


@dataclass(frozen=True)
class ModelConfig:
    """Widths and depths of one network; the defaults are the released ones.

    Attributes
    ----------
    window_hwd
        Voxels of the window that the network sees, axes (H, W, D). Each must be a multiple
        of `stride`.
    features
        Channels of the U-Net's encoder stages, finest first. The first is also the width C of the
        per-voxel features and of the adapted text embeddings.
    convs_per_stage
        Convolution blocks in each encoder and decoder stage.
    text_dim
        Width of the text embeddings, which is also that of the query decoder.
    decoder_layers, heads, ffn
        Depth, attention heads and feed-forward width of the query decoder.
    projection_hidden, mask_hidden
        Hidden widths of the two small MLPs: image embedding and mask embedding.
    in_channels
        The image and the foreground prompt `S_f`.
    """

    window_hwd: Shape3
    features: tuple[int, ...] = (64, 64, 128, 256, 512, 768)
    convs_per_stage: int = 2
    text_dim: int = 768
    decoder_layers: int = 6
    heads: int = 8
    ffn: int = 2048
    projection_hidden: int = 768
    mask_hidden: int = 256
    in_channels: int = 2

    def __post_init__(self) -> None:
        if len(self.features) < 2:
            raise ExportError(
                f"a U-Net needs at least two stages, features are {self.features}",
                code="config-invalid",
            )
        if any(size <= 0 or size % self.stride for size in self.window_hwd):
            raise ExportError(
                f"window {self.window_hwd} must be a multiple of the network's stride "
                f"{self.stride}",
                code="window-not-multiple",
            )
        for name, value in self.to_dict().items():
            if min(value if isinstance(value, tuple) else (value,)) < 1:
                raise ExportError(
                    f"{name} of a network must be positive, found {value}; give another value",
                    code="config-invalid",
                )
        if self.text_dim % self.heads:
            raise ExportError(
                f"text_dim {self.text_dim} does not split into {self.heads} heads; give another "
                "number of heads",
                code="config-invalid",
            )

    @property
    def stride(self) -> int:
        """Voxels of the window for one step of the coarsest feature map."""
        return 1 << (len(self.features) - 1)

    @property
    def channels(self) -> int:
        """Width C of the per-voxel features `F` and of the adapted text embeddings `T`."""
        return self.features[0]

    @property
    def grid_hwd(self) -> Shape3:
        """Shape of the image embedding's token grid for this window."""
        h, w, d = (size // self.stride for size in self.window_hwd)
        return h, w, d

    @classmethod
    def released(cls, window_hwd: Shape3) -> Self:
        """Return the configuration of the released checkpoints, for stage 1 or 2 by its window."""
        return cls(window_hwd=window_hwd)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read back what `to_dict` gave."""
        data = dict(values)
        for name in ("window_hwd", "features"):
            data[name] = tuple(int(value) for value in data[name])
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint or a manifest."""
        return asdict(self)
