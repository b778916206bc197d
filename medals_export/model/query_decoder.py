"""Text embeddings look at the image: pre-norm cross-attention layers and the mask embedding.

There is no self-attention: each query is independent of the others, so N may be cut into chunks.
"""

import torch
from torch import Tensor, nn

from medals_export.model.config import Shape3


def sinusoidal_position_encoding(grid_hwd: Shape3, channels: int) -> Tensor:
    """Return the fixed 3D encoding: a third of the channels an axis, sine and cosine interleaved.

    Gives what `PositionalEncoding3D` of the package `positional_encodings` gives.

    Returns
    -------
    Tensor
        `(h*w*d, channels)`, float32, flattened in the order (h, w, d).
    """
    width = -(-channels // 6) * 2
    frequencies = 1.0 / 10000 ** (torch.arange(0, width, 2, dtype=torch.float32) / width)

    def along(size: int) -> Tensor:
        angles = torch.arange(size, dtype=torch.float32)[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)

    h, w, d = grid_hwd
    parts = (
        along(h)[:, None, None, :].expand(h, w, d, width),
        along(w)[None, :, None, :].expand(h, w, d, width),
        along(d)[None, None, :, :].expand(h, w, d, width),
    )
    return torch.cat(parts, dim=-1)[..., :channels].reshape(h * w * d, channels)


class CrossAttention(nn.Module):
    """Multi-head attention with the parameter names of `torch.nn.MultiheadAttention`.

    Written out in plain matrix products so that it exports to a handful of standard operators.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def _split(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`(B, N, Q)`, `(B, L, Q)`, `(B, L, Q)` to `(B, N, Q)`.

        Half-precision weights make half-precision products; the softmax is float32 then too.
        """
        dtype = self.in_proj_weight.dtype
        weight_q, weight_k, weight_v = self.in_proj_weight.chunk(3)
        bias_q, bias_k, bias_v = self.in_proj_bias.chunk(3)
        q = self._split(nn.functional.linear(query.to(dtype), weight_q, bias_q))
        k = self._split(nn.functional.linear(key.to(dtype), weight_k, bias_k))
        v = self._split(nn.functional.linear(value.to(dtype), weight_v, bias_v))
        # scaled before the product, which fp16 might not hold otherwise
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        mixed = (scores.float().softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        out: Tensor = self.out_proj(mixed)
        return out


class QueryDecoderLayer(nn.Module):
    """Pre-norm cross-attention and feed-forward, ReLU.

    `norm1` belongs to the self-attention that was taken out; it stays as an unused parameter so
    that the released checkpoints load key for key.
    """

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.multihead_attn = CrossAttention(width, heads)
        self.linear1 = nn.Linear(width, ffn)
        self.linear2 = nn.Linear(ffn, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One layer; `keys` are the values plus their position encoding."""
        queries = queries + self.multihead_attn(self.norm2(queries), keys, values)
        hidden = torch.relu(self.linear1(self.norm3(queries)))
        out: Tensor = queries + self.linear2(hidden)
        return out


class QueryDecoder(nn.Module):
    """All layers and the final LayerNorm."""

    def __init__(self, width: int, layers: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(QueryDecoderLayer(width, heads, ffn) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, queries: Tensor, image_embedding: Tensor, positions: Tensor) -> Tensor:
        """`(B, N, Q)` queries, `(B, L, Q)` tokens, `(L, Q)` positions to `(B, N, Q)`."""
        keys = image_embedding + positions
        for layer in self.layers:
            queries = layer(queries, keys, image_embedding)
        out: Tensor = self.norm(queries)
        return out
