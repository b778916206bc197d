"""The whole network: image encoder, query decoder, refiner."""

from torch import Tensor, cat, nn

from medals_export.model.config import ModelConfig, Shape3
from medals_export.model.image_encoder import ConvStack, UNet, pool_stages
from medals_export.model.query_decoder import QueryDecoder, sinusoidal_position_encoding
from medals_export.model.refiner import refine


class MedalS(nn.Module):
    """One stage's network; `state_dict` has the released names.

    Images are floats in 0..255, prompts 0 or 1. Axes are (H, W, D). Everything runs on the device
    and in the dtype of the parameters.
    """

    positions: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = UNet(config)
        self.projection_layer = nn.Sequential(
            nn.Linear(sum(config.features), config.projection_hidden),
            nn.GELU(),
            nn.Linear(config.projection_hidden, config.text_dim),
            nn.GELU(),
        )
        self.transformer_decoder = QueryDecoder(
            config.text_dim, config.decoder_layers, config.heads, config.ffn
        )
        self.mask_embed_proj = nn.Sequential(
            nn.Linear(config.text_dim, config.mask_hidden),
            nn.GELU(),
            nn.Linear(config.mask_hidden, config.channels),
            nn.GELU(),
        )
        self.fusion_conv = ConvStack(2 * config.channels, config.channels, count=1)
        self.register_buffer(
            "positions",
            sinusoidal_position_encoding(config.grid_hwd, config.text_dim),
            persistent=False,
        )

    def encode(self, image: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
        """Look at one window.

        Parameters
        ----------
        image, foreground
            `(B, 1, H, W, D)`: intensities in 0..255, and `S_f`.

        Returns
        -------
        features, image_embedding
            `F (B, C, H, W, D)` and tokens `(B, h*w*d, text_dim)`.
        """
        skips, features = self.backbone(cat([image, foreground], dim=1))
        return features, self.projection_layer(pool_stages(skips))

    def adapt(
        self, image_embedding: Tensor, queries: Tensor, grid_hwd: Shape3 | None = None
    ) -> Tensor:
        """Adapt text embeddings to an image.

        Parameters
        ----------
        image_embedding
            `(B, L, text_dim)` from `encode`.
        queries
            `(N, text_dim)` or `(B, N, text_dim)`.
        grid_hwd
            Token grid, where it is not that of the configured window.

        Returns
        -------
        Tensor
            `T (B, N, C)`.
        """
        if queries.ndim == 2:
            queries = queries.expand(image_embedding.shape[0], -1, -1)
        positions = self.positions
        if grid_hwd is not None and grid_hwd != self.config.grid_hwd:
            positions = sinusoidal_position_encoding(grid_hwd, self.config.text_dim).to(positions)
        adapted: Tensor = self.mask_embed_proj(
            self.transformer_decoder(queries, image_embedding, positions)
        )
        return adapted

    def refine(self, features: Tensor, adapted: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Logits `(B, N, H, W, D)` from features, `T` and `S_p (B, N, H, W, D)` or none."""
        return refine(self.fusion_conv, features, adapted, prompts)

    def forward(
        self, image: Tensor, foreground: Tensor, queries: Tensor, prompts: Tensor | None = None
    ) -> Tensor:
        """Logits `(B, N, H, W, D)` of one window, all parts in a row."""
        features, image_embedding = self.encode(image, foreground)
        h, w, d = (size // self.config.stride for size in image.shape[2:])
        return self.refine(features, self.adapt(image_embedding, queries, (h, w, d)), prompts)
