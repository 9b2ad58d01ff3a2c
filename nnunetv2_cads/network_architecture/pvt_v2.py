"""PVTv2 encoder for CT volumes and X-rays: one set of weights, two dimensions.

Paper: CADS, Ye, Zhang, Chen, Xia, IEEE TMI 44(1):118-129, 2025 (the encoder, of size b1); PVTv2, Wang et al.,
Computational Visual Media 8:415-424, 2022 (overlapping patch embeddings, spatial reduction, depthwise MLP, sizes).
Source: written from the method's description; keys and shapes of b1 are those of the published checkpoint.
Deviations: attention is PyTorch's `scaled_dot_product_attention`; the MLP takes the fastest exact path of the device
(`ops/mlp.py`); inputs that the first reduction cannot cover are refused with a sentence.

Only what touches space exists twice (suffix ``_2D``); all else is shared, which is what aligns the modalities.
The whole network is in this one file, in reading order: attention, MLP, block, embeddings, encoder.
"""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.ops.depthwise import depthwise_conv3d
from nnunetv2_cads.network_architecture.ops.dimensions import OPERATORS, to_map, to_tokens
from nnunetv2_cads.network_architecture.ops.linear import TokenLinear
from nnunetv2_cads.network_architecture.ops.mlp import mlp_in_parts, runs_in_parts
from nnunetv2_cads.network_architecture.ops.patches import reduce_patches
from nnunetv2_cads.network_architecture.ops.recompute import keep_input_only


@dataclass(frozen=True)
class Size:
    """Numbers of the four stages: blocks, channels, and per block heads, MLP width and spatial reduction."""

    depths: tuple[int, ...]
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)


SIZES = {
    "b0": Size((2, 2, 2, 2), embed_dims=(32, 64, 160, 256)),
    "b1": Size((2, 2, 2, 2)),
    "b2": Size((3, 4, 6, 3)),
    "b3": Size((3, 4, 18, 3)),
    "b4": Size((3, 8, 27, 3)),
    "b5": Size((3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}
"""PVTv2's, by name. Only of b1 is there a published CADS checkpoint."""

STEM_STRIDE = 2
MINIMUM_SIZE = {3: (15, 29, 29), 2: (29, 29)}
"""Smallest input whose stage-1 map still holds one 8-wide reduction window, by number of spatial dimensions."""
SUFFIX = {2: "_2D", 3: ""}
"""What the names of modules that touch space end in, by number of dimensions."""
EPS = 1e-6
"""Of the blocks' and stages' LayerNorms."""


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
                self.add_module("sr" + SUFFIX[d], OPERATORS[d].conv(dim, dim, sr_ratio, stride=sr_ratio))
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) of a map with the spatial ``size`` -> (B, N, C)."""
        batch, tokens, channels = x.shape
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        source = x
        if self.sr_ratio > 1:
            reduce = getattr(self, "sr" + SUFFIX[len(size)])
            source = self.norm(reduce_patches(reduce, to_map(x, size)))
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
    """3x3x3 depthwise convolution on tokens, shared by both modalities: an X-ray is a volume of one slice."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        volume = to_map(x, (1, *size) if len(size) == 2 else size)
        return to_tokens(depthwise_conv3d(volume, self.dwconv.weight, self.dwconv.bias))


class MLP(nn.Module):
    """Linear, depthwise convolution, GELU, linear.

    Of the forward pass, only the first layer's output is kept, and in float32 on a CPU only the input (`ops/mlp.py`);
    the rest, three times as much, is computed again in the backward pass. That costs 3% of a training step and saves a
    quarter of its memory.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = TokenLinear(dim, hidden_dim)
        self.dwconv = DepthwiseConv(hidden_dim)
        self.act = nn.GELU()
        self.fc2 = TokenLinear(hidden_dim, dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        if runs_in_parts(x):
            return mlp_in_parts(x, size, self.fc1, self.dwconv.dwconv, self.fc2)
        return keep_input_only(self._after_fc1, self.fc1(x), size)

    def _after_fc1(self, hidden: Tensor, size: tuple[int, ...]) -> Tensor:
        return self.fc2(self.act(self.dwconv(hidden, size)))


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


class StemEmbedding(nn.Module):
    """Stage 1 patch embedding: a convolutional stem at half resolution, then a strided convolution to tokens."""

    def __init__(self, input_channels: int, dim: int, spatial_dims: tuple[int, ...]) -> None:
        super().__init__()
        for d in spatial_dims:
            conv, norm = OPERATORS[d].conv, OPERATORS[d].instance_norm
            layers = [conv(input_channels, dim, 7, stride=STEM_STRIDE, padding=3)]
            for _ in range(2):
                layers += [norm(dim), nn.LeakyReLU(0.01, inplace=True), conv(dim, dim, 3, padding=1, bias=False)]
            layers += [norm(dim), nn.LeakyReLU(0.01, inplace=True)]
            self.add_module("proj" + SUFFIX[d], nn.Sequential(*layers))
            stride = (1, 2, 2) if d == 3 else 2
            self.add_module("proj_next" + SUFFIX[d], conv(dim, dim, 3, stride=stride, padding=1))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """(B, C, [D,] H, W) -> stem map (B, dim, ...), tokens (B, N, dim), their spatial size."""
        suffix = SUFFIX[x.dim() - 2]
        proj = getattr(self, "proj" + suffix)
        stem = proj[0](x)
        for layers in (
            proj[1:4],
            proj[4:7],
        ):  # norm, activation, convolution: the backward pass keeps only the norm's input
            stem = keep_input_only(layers, stem)
        stem = proj[7:](stem)
        tokens, size = _embed(getattr(self, "proj_next" + suffix), self.norm, stem)
        return stem, tokens, size


class PatchEmbedding(nn.Module):
    """Overlapping patch embedding of stages 2 to 4: a strided convolution to tokens."""

    def __init__(self, in_dim: int, dim: int, spatial_dims: tuple[int, ...]) -> None:
        super().__init__()
        for d in spatial_dims:
            self.add_module("proj" + SUFFIX[d], OPERATORS[d].conv(in_dim, dim, 3, stride=2, padding=1))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """(B, C, [D,] H, W) -> tokens (B, N, dim), their spatial size."""
        return _embed(getattr(self, "proj" + SUFFIX[x.dim() - 2]), self.norm, x)


def _embed(conv: nn.Module, norm: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    x = conv(x)
    return norm(to_tokens(x)), tuple(x.shape[2:])


class PVTv2Encoder(nn.Module):
    """PVTv2 that takes CT volumes and X-rays.

    Args:
        input_channels: channels of the input images.
        spatial_dims: which dimensions to hold modules for. ``(2, 3)`` has the keys of the published checkpoint;
            ``(3,)`` or ``(2,)`` hold only the modules of that dimension, so that no parameter is ever unused.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 over the blocks.
        size: a key of `SIZES`.

    Attributes:
        channels: of the five maps.
        branches: how many residual branches stochastic depth can drop: two per block.

    Raises:
        ValueError: ``spatial_dims`` is not a non-empty selection of 2 and 3, or another ``size``.
    """

    def __init__(
        self,
        input_channels: int = 1,
        spatial_dims: tuple[int, ...] = (2, 3),
        drop_path_rate: float = 0.1,
        size: str = "b1",
    ) -> None:
        super().__init__()
        if not spatial_dims or not set(spatial_dims) <= {2, 3}:
            raise ValueError(f"spatial_dims must be (2,), (3,) or (2, 3), got {spatial_dims}")
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
        self.input_channels, self.spatial_dims, self.size = input_channels, tuple(sorted(set(spatial_dims))), size
        of = SIZES[size]
        self.channels, self.branches = (of.embed_dims[0], *of.embed_dims), 2 * sum(of.depths)
        rates = torch.linspace(0, drop_path_rate, sum(of.depths), device="cpu").tolist()  # not on meta if all else is
        for i, (dim, depth) in enumerate(zip(of.embed_dims, of.depths, strict=True)):
            if i == 0:
                embedding = StemEmbedding(input_channels, dim, self.spatial_dims)
            else:
                embedding = PatchEmbedding(of.embed_dims[i - 1], dim, self.spatial_dims)
            first = sum(of.depths[:i])
            blocks = [
                Block(dim, of.num_heads[i], of.mlp_ratios[i], of.sr_ratios[i], rate, self.spatial_dims)
                for rate in rates[first : first + depth]
            ]
            self.add_module(f"patch_embed{i + 1}", embedding)
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dim, eps=EPS))
        self.apply(_initialise)

    def forward(self, x: Tensor, noise: Tensor | None = None, levels: int = 5) -> list[Tensor]:
        """Run CT (B, C, D, H, W) or X-rays (B, C, H, W).

        Args:
            x: the images.
            noise: (`branches`, B) uniform numbers in [0, 1) that decide stochastic depth, for trainings in which it
                must not depend on how a batch is split; by default the global generator's.
            levels: maps to make, from the stem on; what is deeper is not run.

        Returns:
            The maps [stem, stage 1, ..., stage 4] with `channels` (64, 64, 128, 320, 512 in b1) and strides
            relative to the input of (2, 2, 2), (2, 4, 4), (4, 8, 8), (8, 16, 16), (16, 32, 32); odd sizes round up.
            The stage maps are the normalised ones.

        Raises:
            ValueError: wrong number of dimensions or channels, or an input below `MINIMUM_SIZE`.
        """
        self._check_input(x)
        branches = itertools.repeat((None, None)) if noise is None else iter(noise.unflatten(0, (-1, 2)))
        stem, tokens, size = self.patch_embed1(x)
        maps = [stem]
        for i in range(1, levels):
            if i > 1:
                tokens, size = getattr(self, f"patch_embed{i}")(maps[-1])
            for block in getattr(self, f"block{i}"):
                tokens = block(tokens, size, next(branches))
            maps.append(to_map(getattr(self, f"norm{i}")(tokens), size))
        return maps

    def _check_input(self, x: Tensor) -> None:
        dims = x.dim() - 2
        if dims not in self.spatial_dims or x.shape[1] != self.input_channels:
            axes = {2: "H, W", 3: "D, H, W"}
            allowed = " or ".join(f"(B, {self.input_channels}, {axes[d]})" for d in self.spatial_dims)
            raise ValueError(f"the encoder takes {allowed}, got an input of shape {tuple(x.shape)}")
        if any(size < least for size, least in zip(x.shape[2:], MINIMUM_SIZE[dims], strict=True)):
            raise ValueError(
                f"the encoder needs inputs of at least {MINIMUM_SIZE[dims]} voxels, got {tuple(x.shape[2:])}; pad first"
            )


def _initialise(module: nn.Module) -> None:
    """Truncated normal 0.02 for linear layers; normal with std sqrt(2 / fan_out) for convolutions.

    fan_out counts the first two kernel edges only, as the published initialisation does for 2D and 3D alike.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
