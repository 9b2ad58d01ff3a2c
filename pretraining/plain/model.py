"""Encoder, projection heads, student and teacher (CADS method, sections 3 and 4).

Attention is written as matrix products, every convolution is PyTorch's own, and each view goes through the encoder by
itself. The keys are those of the published checkpoint, so weights can be copied to and from
`pretraining.method.student_teacher`.

Ours: optional batch normalisation in the heads (``head_batch_norm``, off as published).
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.config import ModelConfig

WIDTHS = (64, 128, 320, 512)
HEADS = (1, 2, 5, 8)
MLP_RATIOS = (8, 8, 4, 4)
REDUCTIONS = (8, 4, 2, 1)
BLOCKS = 2
"""Blocks of each of the four stages."""


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v; keys and values come from a map reduced ``reduction`` times along each axis."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if reduction > 1:
            self.sr = nn.Conv3d(dim, dim, reduction, stride=reduction)
            self.sr_2D = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) of a map of the given size -> (B, N, C)."""
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3)
        if self.reduction > 1:
            reduce = self.sr if len(size) == 3 else self.sr_2D
            x = self.norm(to_tokens(reduce(to_map(x, size))))
        k, v = self.kv(x).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / math.sqrt(c // self.heads)).softmax(dim=-1)
        return self.proj((attention @ v).transpose(1, 2).reshape(b, n, c))


class DepthwiseConv(nn.Module):
    """3x3x3 depthwise convolution; an X-ray is a volume of one slice, so CT and X-ray share it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        volume = to_map(x, (1, *size) if len(size) == 2 else size)
        return to_tokens(self.dwconv(volume))


class MLP(nn.Module):
    """Linear, depthwise convolution, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(dim, hidden), DepthwiseConv(hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), size)))


class Block(nn.Module):
    """Pre-norm residual block: attention, then MLP. Stochastic depth drops either for some samples."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, reduction: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp, self.drop = Attention(dim, heads, reduction), MLP(dim, dim * mlp_ratio), drop

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        x = x + self._drop_path(self.attn(self.norm1(x), size))
        return x + self._drop_path(self.mlp(self.norm2(x), size))

    def _drop_path(self, x: Tensor) -> Tensor:
        if self.drop == 0 or not self.training:
            return x
        kept = torch.rand(len(x), device=x.device) < 1 - self.drop
        return x * kept.reshape(-1, 1, 1) / (1 - self.drop)


class PatchEmbedding(nn.Module):
    """Strided convolution to tokens. Stage 1 has a stem of three convolutions at half resolution before it."""

    def __init__(self, in_dim: int, dim: int, stem: bool) -> None:
        super().__init__()
        for conv, norm, stride, suffix in (
            (nn.Conv3d, nn.InstanceNorm3d, (1, 2, 2), ""),
            (nn.Conv2d, nn.InstanceNorm2d, 2, "_2D"),
        ):
            if stem:
                layers = [conv(in_dim, dim, 7, stride=2, padding=3), norm(dim), nn.LeakyReLU(0.01)]
                for _ in range(2):
                    layers += [conv(dim, dim, 3, padding=1, bias=False), norm(dim), nn.LeakyReLU(0.01)]
                self.add_module("proj" + suffix, nn.Sequential(*layers))
                self.add_module("proj_next" + suffix, conv(dim, dim, 3, stride=stride, padding=1))
            else:
                self.add_module("proj" + suffix, conv(in_dim, dim, 3, stride=2, padding=1))
        self.stem, self.norm = stem, nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """(B, C, [D,] H, W) -> tokens (B, N, dim) and the size of their map."""
        suffix = "" if x.dim() == 5 else "_2D"
        x = getattr(self, "proj" + suffix)(x)
        if self.stem:
            x = getattr(self, "proj_next" + suffix)(x)
        return self.norm(to_tokens(x)), tuple(x.shape[2:])


class Encoder(nn.Module):
    """PVTv2-b1 for CT and X-rays. Only what touches space exists twice (keys with ``_2D``)."""

    def __init__(self, drop_path_rate: float) -> None:
        super().__init__()
        drops = torch.linspace(0, drop_path_rate, BLOCKS * len(WIDTHS)).reshape(len(WIDTHS), BLOCKS).tolist()
        for i, dim in enumerate(WIDTHS):
            embedding = PatchEmbedding(WIDTHS[i - 1] if i else 1, dim, stem=i == 0)
            blocks = [Block(dim, HEADS[i], MLP_RATIOS[i], REDUCTIONS[i], drop) for drop in drops[i]]
            self.add_module(f"patch_embed{i + 1}", embedding)
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dim, eps=1e-6))
        self.apply(initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 1, [D,] H, W) -> the maps of the four stages, (B, C, [d,] h, w)."""
        maps = []
        for i in range(1, len(WIDTHS) + 1):
            tokens, size = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                tokens = block(tokens, size)
            x = to_map(getattr(self, f"norm{i}")(tokens), size)
            maps.append(x)
        return maps


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose rows have length 1; the gain ``weight_g`` stays as it is."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=False)
        self.weight_v = nn.Parameter(nn.init.trunc_normal_(torch.empty(out_dim, in_dim), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_dim) -> (N, out_dim)."""
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


class Head(nn.Module):
    """Three linear layers, L2 normalisation, weight-normalised layer to K outputs."""

    def __init__(self, in_dim: int, config: ModelConfig) -> None:
        super().__init__()
        layers = []
        for dim in (in_dim, config.head_hidden_dim):
            layers.append(nn.Linear(dim, config.head_hidden_dim))
            if config.head_batch_norm:
                layers.append(nn.BatchNorm1d(config.head_hidden_dim))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(config.head_hidden_dim, config.head_bottleneck_dim))
        self.last_layer = WeightNormLinear(config.head_bottleneck_dim, config.head_out_dim)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_dim) -> logits (N, K)."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class Student(nn.Module):
    """Encoder and a head for each stage."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = Encoder(config.drop_path_rate)
        self.head_1, self.head_2, self.head_3, self.head = (Head(dim, config) for dim in WIDTHS)

    def forward(self, views: list[Tensor]) -> list[list[Tensor]]:
        """Views of B samples -> for each stage, for each view, logits (B, K)."""
        maps = [self.backbone(view) for view in views]
        heads = (self.head_1, self.head_2, self.head_3, self.head)
        return [apply_head(head, [view_maps[stage] for view_maps in maps]) for stage, head in enumerate(heads)]


class Teacher(nn.Module):
    """The student's encoder and last head, without gradients. Stays in train mode, as published."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.backbone, self.head = copy.deepcopy(student.backbone), copy.deepcopy(student.head)
        self.requires_grad_(False)

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Views of B samples -> for each view, logits (B, K)."""
        return apply_head(self.head, [self.backbone(view)[-1] for view in views])


def apply_head(head: Head, maps: list[Tensor]) -> list[Tensor]:
    """One stage's map of each view -> its mean over space through the head; all at once, for batch normalisation."""
    pooled = torch.cat([feature_map.flatten(2).mean(2) for feature_map in maps])
    return list(head(pooled).chunk(len(maps)))


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, [D,] H, W) -> (B, N, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, N, C) -> (B, C, *size)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *size).contiguous()


def initialise(module: nn.Module) -> None:
    """Linear: truncated normal, 0.02. Convolution: normal, std sqrt(2 / fan_out), of the first two kernel edges."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, (nn.Conv2d, nn.Conv3d)):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)) and module.bias is not None:
        nn.init.zeros_(module.bias)
