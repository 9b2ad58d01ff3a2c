"""DeTrans, the transformer of CoTr: each token attends to a few learnt places of two maps instead of to all tokens.

Paper: CoTr, Xie, Zhang, Shen, Xia, MICCAI 2021; deformable attention: Zhu et al., ICLR 2021, there in 2D.
Source: our own implementation, written from a description of the published network, not from its code; keys and
outputs are those of the published one (`cotr.py`).
Deviations: none in the numbers. Each level is sampled by one call of PyTorch's `grid_sample`.

Places have the components (depth, width, height), as published. `grid_sample` reads (width, height, depth): see
`SAMPLING_ORDERS`.
"""

import copy
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.ops.dimensions import to_map, to_tokens
from nnunetv2_cads.network_architecture.ops.linear import TokenLinear

WIDTH, HEADS, LEVELS, POINTS, AXES = 384, 6, 2, 4, 3
"""Channels of a token; heads; maps; places per head and map; components of a place."""
LAYERS, HIDDEN_WIDTH, DROPOUT = 6, 1536, 0.1
TEMPERATURE = 10_000
"""Base of the position encoding's wavelengths."""

SAMPLING_ORDERS = ("corrected", "published")
"""How places are given to `grid_sample`. ``corrected``: as it reads them. ``published``: as they are, so that a query
looks around another place than its own: depth is read as width, width as height, height as depth. The published
results were obtained with that."""


class DeformableAttention(nn.Module):
    """Attention to `POINTS` places of each map, which a linear layer puts around the query's own place.

    Args:
        sampling_order: one of `SAMPLING_ORDERS`.
    """

    def __init__(self, sampling_order: str) -> None:
        super().__init__()
        self.sampling_order = sampling_order
        self.sampling_offsets = TokenLinear(WIDTH, HEADS * LEVELS * POINTS * AXES)
        self.attention_weights = TokenLinear(WIDTH, HEADS * LEVELS * POINTS)
        self.value_proj = TokenLinear(WIDTH, WIDTH)
        self.output_proj = TokenLinear(WIDTH, WIDTH)

    def forward(self, queries: Tensor, tokens: Tensor, places: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
        """Queries and tokens (B, N, `WIDTH`), the queries' places (N, 3) in parts of the maps -> (B, N, `WIDTH`).

        Args:
            queries: tokens with their position encoding.
            tokens: of all maps, one map after the other.
            places: (depth, width, height) of each query, 0 to 1.
            sizes: (D, H, W) of the maps.
        """
        values = self.value_proj(tokens).split([math.prod(size) for size in sizes], dim=1)
        offsets = self.sampling_offsets(queries).unflatten(2, (HEADS, LEVELS, POINTS, AXES)).unbind(3)
        weights = self.attention_weights(queries).unflatten(2, (HEADS, LEVELS * POINTS)).softmax(-1).chunk(LEVELS, -1)
        attended = 0
        for value, offset, weight, (depth, height, width) in zip(values, offsets, weights, sizes, strict=True):
            cells = zip(offset.unbind(-1), (depth, width, height), strict=True)
            around = places[:, None, None] + torch.stack([component / n for component, n in cells], dim=-1)
            sampled = self._sample(to_map(value, (depth, height, width)), around)
            attended = attended + (sampled * weight.permute(0, 2, 1, 3)[:, :, None]).sum(-1)
        return self.output_proj(attended.flatten(1, 2).transpose(1, 2))

    def _sample(self, value: Tensor, places: Tensor) -> Tensor:
        """A map (B, `WIDTH`, D, H, W) at places (B, N, heads, points, 3) -> (B, heads, channels, N, points).

        Trilinear, zeros outside. Under autocast, places stay in float32, whose steps are small parts of a cell.
        """
        batch = len(value)
        maps = value.to(places.dtype).unflatten(1, (HEADS, -1)).flatten(0, 1)
        grid = 2 * places.transpose(1, 2).flatten(0, 1).unsqueeze(3) - 1
        if self.sampling_order == "corrected":
            grid = grid.roll(-1, dims=-1)
        return F.grid_sample(maps, grid, align_corners=False).squeeze(-1).unflatten(0, (batch, HEADS))


class DeformableLayer(nn.Module):
    """Deformable attention, then an MLP; each followed by dropout, the skip connection and a LayerNorm."""

    def __init__(self, sampling_order: str) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(sampling_order)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.linear1 = TokenLinear(WIDTH, HIDDEN_WIDTH)
        self.linear2 = TokenLinear(HIDDEN_WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, tokens: Tensor, position: Tensor, places: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
        """Tokens (B, N, `WIDTH`), their position encoding (N, `WIDTH`) and places (N, 3) -> (B, N, `WIDTH`)."""
        attended = self.self_attn(tokens + position, tokens, places, sizes)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.dropout(F.gelu(self.linear1(tokens)))
        return self.norm2(tokens + self.dropout(self.linear2(hidden)))


class DeformableTransformer(nn.Module):
    """`LAYERS` layers on the tokens of two maps together.

    Args:
        sampling_order: one of `SAMPLING_ORDERS`.

    Raises:
        ValueError: another ``sampling_order``.
    """

    def __init__(self, sampling_order: str) -> None:
        super().__init__()
        if sampling_order not in SAMPLING_ORDERS:
            raise ValueError(f"sampling_order must be one of {', '.join(SAMPLING_ORDERS)}, got {sampling_order!r}")
        self.level_embed = nn.Parameter(torch.randn(LEVELS, WIDTH))
        layer = DeformableLayer(sampling_order)
        layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(LAYERS))  # as published: with the same biases
        self.encoder = nn.ModuleDict({"layers": layers})
        self.apply(_initialise)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Two maps (B, `WIDTH`, D, H, W) -> two maps of the same shapes."""
        sizes = [tuple(m.shape[2:]) for m in maps]
        tokens = torch.cat([to_tokens(m) for m in maps], dim=1)
        position = torch.cat(
            [position_encoding(size, tokens.device) + self.level_embed[i] for i, size in enumerate(sizes)]
        )
        places = torch.cat([cell_centres(size, tokens.device) for size in sizes])
        for layer in self.encoder["layers"]:
            tokens = layer(tokens, position, places, sizes)
        parts = tokens.split([math.prod(size) for size in sizes], dim=1)
        return [to_map(part, size) for part, size in zip(parts, sizes, strict=True)]


def position_encoding(size: Sequence[int], device: torch.device) -> Tensor:
    """Sines and cosines of each cell's place in a map of ``size`` (D, H, W): (D * H * W, `WIDTH`).

    A third of the channels each for depth, height and width. As published, wavelengths change every three channels,
    sine and cosine every channel.
    """
    channel = torch.arange(WIDTH // AXES, device=device)
    frequency = TEMPERATURE ** (AXES * (channel // AXES) / len(channel))
    encoded = []
    for n in size:
        phase = 2 * math.pi * (torch.arange(n, device=device) + 0.5) / (n + 1e-6)
        angle = phase[:, None] / frequency
        encoded.append(torch.where(channel % 2 == 0, angle.sin(), angle.cos()))
    depth, height, width = encoded
    axes = (depth[:, None, None], height[:, None], width)
    return torch.cat([axis.expand(*size, -1) for axis in axes], dim=-1).flatten(0, 2)


def cell_centres(size: Sequence[int], device: torch.device) -> Tensor:
    """(depth, width, height) of each cell's centre in a map of ``size`` (D, H, W), 0 to 1: (D * H * W, 3)."""
    depth, height, width = torch.meshgrid(*((torch.arange(n, device=device) + 0.5) / n for n in size), indexing="ij")
    return torch.stack((depth, width, height), dim=-1).flatten(0, 2)


def _initialise(module: nn.Module) -> None:
    """Xavier for matrices; at first, every head attends equally to four places on a ray of its own."""
    if isinstance(module, DeformableLayer):
        nn.init.xavier_uniform_(module.linear1.weight)
        nn.init.xavier_uniform_(module.linear2.weight)
    elif isinstance(module, DeformableAttention):
        for linear in (module.value_proj, module.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (module.attention_weights, module.sampling_offsets):
            nn.init.zeros_(linear.weight)
        nn.init.zeros_(module.attention_weights.bias)
        with torch.no_grad():
            module.sampling_offsets.bias.copy_(_first_offsets().flatten())


def _first_offsets() -> Tensor:
    """(heads, levels, points, 3) in cells: point p of a head lies p + 1 cells along the head's direction."""
    angle = 2 * math.pi * torch.arange(HEADS) / HEADS
    rays = torch.stack((angle.cos(), angle.sin() * angle.cos(), angle.sin() ** 2), dim=-1)
    rays = rays / rays.abs().amax(-1, keepdim=True)
    return (rays[:, None, None] * torch.arange(1, POINTS + 1)[:, None]).expand(-1, LEVELS, -1, -1)
