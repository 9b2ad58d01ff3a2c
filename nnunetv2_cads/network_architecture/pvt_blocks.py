"""The transformer block of PVTv2 on tokens of volumes or images: spatially reduced attention, then a depthwise MLP.

Paper: PVTv2, Wang et al., Computational Visual Media 8:415-424, 2022; the encoder in `pvt_v2.py` says what is ours.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnunetv2_cads.network_architecture.depthwise import depthwise_conv3d
from nnunetv2_cads.network_architecture.linear import TokenLinear

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
SUFFIX = {2: "_2D", 3: ""}
"""What the names of modules that touch space end in, by number of dimensions."""
EPS = 1e-6
"""Of the blocks' and stages' LayerNorms."""


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample and rescales the kept ones by 1 / (1 - p)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, ...) -> (B, ...). ``noise``: (B,) uniform numbers that decide; by default the global generator's."""
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        if noise is None:
            noise = torch.rand(len(x), device=x.device)
        mask = (noise < keep).to(x.dtype).div_(keep)
        return x * mask.view(-1, *(1,) * (x.dim() - 1))


class Attention(nn.Module):
    """Multi-head attention whose keys and values come from a spatially reduced map (PVTv2, section 3.2)."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, spatial_dims: tuple[int, ...]) -> None:
        super().__init__()
        self.num_heads, self.sr_ratio = num_heads, sr_ratio
        self.q = TokenLinear(dim, dim)
        self.kv = TokenLinear(dim, 2 * dim)
        self.proj = TokenLinear(dim, dim)
        if sr_ratio > 1:
            for d in spatial_dims:
                self.add_module("sr" + SUFFIX[d], CONV[d](dim, dim, sr_ratio, stride=sr_ratio))
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) of a map with the spatial ``size`` -> (B, N, C)."""
        batch, tokens, channels = x.shape
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        source = x
        if self.sr_ratio > 1:
            reduce = getattr(self, "sr" + SUFFIX[len(size)])
            source = self.norm(to_tokens(reduce(to_map(x, size))))
        k, v = self.kv(source).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = _attend(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, channels))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention; on a CPU in float32, where PyTorch's bf16 backward is six times slower."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


class DepthwiseConv(nn.Module):
    """3x3x3 depthwise convolution on tokens; an X-ray is a volume of one slice, so both modalities share it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        volume = to_map(x, (1, *size) if len(size) == 2 else size)
        return to_tokens(depthwise_conv3d(volume, self.dwconv.weight, self.dwconv.bias))


class MLP(nn.Module):
    """Linear, depthwise convolution, GELU, linear.

    With gradients, only the first layer's output is kept; the rest, three times as much, is computed again in the
    backward pass. That costs 3% of a training step and saves a quarter of its memory.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden_dim)
        self.dwconv = DepthwiseConv(hidden_dim)
        self.act = nn.GELU()
        self.fc2 = TokenLinear(hidden_dim, dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        return keep_input_only(self._after_fc1, self.fc1(x), size)

    def _after_fc1(self, hidden: Tensor, size: tuple[int, ...]) -> Tensor:
        return self.fc2(self.act(self.dwconv(hidden, size)))


class Block(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: int, sr_ratio: int, drop_path: float, spatial_dims: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, num_heads, sr_ratio, spatial_dims)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, dim * mlp_ratio)

    def forward(self, x: Tensor, size: tuple[int, ...], noise: Tensor | tuple[None, None] = (None, None)) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C). ``noise``: (2, B) uniform numbers for the branches' stochastic depth."""
        x = x + self.drop_path(self.attn(self.norm1(x), size), noise[0])
        return x + self.drop_path(self.mlp(self.norm2(x), size), noise[1])


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, [D,] H, W) -> (B, N, C); a view when the map is channels-last."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, N, C) -> (B, C, *size), a channels-last view."""
    return tokens.transpose(1, 2).unflatten(2, size)


def keep_input_only(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """function(*inputs), keeping nothing else for the backward pass, which computes the rest again."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
