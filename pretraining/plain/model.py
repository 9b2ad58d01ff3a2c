"""Student and teacher, written plainly: attention as matrices, PyTorch's own depthwise convolution, default layout.

The keys are those of `pretraining.method.student_teacher`, so that both sides start from the same weights.
"""

import copy
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.config import ModelConfig

STAGES = tuple(zip((64, 128, 320, 512), (1, 2, 5, 8), (8, 8, 4, 4), (8, 4, 2, 1), strict=True))
BLOCKS = 2


def convolution(dims: int, *args, **kwargs) -> nn.Module:
    """2D or 3D convolution."""
    return (nn.Conv3d if dims == 3 else nn.Conv2d)(*args, **kwargs)


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d)) v with spatially reduced keys and values."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads, self.ratio, self.scale = heads, ratio, (dim // heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        if ratio > 1:
            self.sr = nn.Conv3d(dim, dim, ratio, stride=ratio)
            self.sr_2D = nn.Conv2d(dim, dim, ratio, stride=ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3)
        if self.ratio > 1:
            reduce = self.sr if len(size) == 3 else self.sr_2D
            x = reduce(x.permute(0, 2, 1).reshape(b, c, *size)).reshape(b, c, -1).permute(0, 2, 1)
            x = self.norm(x)
        kv = self.kv(x).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attention = ((q @ kv[0].transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attention @ kv[1]).transpose(1, 2).reshape(b, n, c))


class DepthwiseConv(nn.Module):
    """Depthwise convolution of tokens; an X-ray is one slice."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        b, _, c = x.shape
        volume = x.transpose(1, 2).reshape(b, c, *((1, *size) if len(size) == 2 else size))
        return self.dwconv(volume.contiguous()).flatten(2).transpose(1, 2)


class MLP(nn.Module):
    """Linear, depthwise convolution, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(dim, hidden), DepthwiseConv(hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), size)))


class Block(nn.Module):
    """Pre-norm residual block with stochastic depth."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, sr_ratio: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp, self.drop = Attention(dim, heads, sr_ratio), MLP(dim, dim * mlp_ratio), drop

    def forward(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        """Tokens (B, N, C) -> (B, N, C)."""
        x = x + self._drop(self.attn(self.norm1(x), size))
        return x + self._drop(self.mlp(self.norm2(x), size))

    def _drop(self, x: Tensor) -> Tensor:
        if self.drop == 0 or not self.training:
            return x
        mask = torch.rand(x.shape[0], 1, 1, device=x.device) < 1 - self.drop
        return x * mask / (1 - self.drop)


class PatchEmbedding(nn.Module):
    """Strided convolution to tokens; that of stage 1 has the stem before it."""

    def __init__(self, in_dim: int, dim: int, stem: bool) -> None:
        super().__init__()
        self.stem = stem
        for dims, suffix in ((3, ""), (2, "_2D")):
            if stem:
                norm = nn.InstanceNorm3d if dims == 3 else nn.InstanceNorm2d
                layers = [convolution(dims, in_dim, dim, 7, stride=2, padding=3), norm(dim), nn.LeakyReLU(0.01)]
                for _ in range(2):
                    layers += [convolution(dims, dim, dim, 3, padding=1, bias=False), norm(dim), nn.LeakyReLU(0.01)]
                self.add_module("proj" + suffix, nn.Sequential(*layers))
                stride = (1, 2, 2) if dims == 3 else 2
                self.add_module("proj_next" + suffix, convolution(dims, dim, dim, 3, stride=stride, padding=1))
            else:
                self.add_module("proj" + suffix, convolution(dims, in_dim, dim, 3, stride=2, padding=1))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """(B, C, [D,] H, W) -> tokens (B, N, dim), their spatial size."""
        suffix = "" if x.dim() == 5 else "_2D"
        x = getattr(self, "proj" + suffix)(x)
        if self.stem:
            x = getattr(self, "proj_next" + suffix)(x)
        return self.norm(x.flatten(2).transpose(1, 2)), tuple(x.shape[2:])


class Encoder(nn.Module):
    """PVTv2-b1 for CT and X-rays; returns the mean of each stage's map, (B, C)."""

    def __init__(self, drop_path_rate: float) -> None:
        super().__init__()
        rates = torch.linspace(0, drop_path_rate, BLOCKS * len(STAGES)).tolist()
        before = 1
        for i, (dim, heads, mlp_ratio, sr_ratio) in enumerate(STAGES):
            blocks = [Block(dim, heads, mlp_ratio, sr_ratio, rate) for rate in rates[BLOCKS * i : BLOCKS * (i + 1)]]
            self.add_module(f"patch_embed{i + 1}", PatchEmbedding(before, dim, stem=i == 0))
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dim, eps=1e-6))
            before = dim

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 1, [D,] H, W) -> pooled maps of the four stages."""
        pooled = []
        for i in range(1, len(STAGES) + 1):
            tokens, size = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                tokens = block(tokens, size)
            tokens = getattr(self, f"norm{i}")(tokens)
            x = tokens.transpose(1, 2).reshape(len(x), -1, *size).contiguous()
            pooled.append(x.flatten(2).mean(2))
        return pooled


class Head(nn.Module):
    """Three-layer perceptron, normalisation, weight-normalised linear layer."""

    def __init__(self, in_dim: int, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.head_hidden_dim
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, config.head_bottleneck_dim),
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the old function has the published keys
            linear = nn.Linear(config.head_bottleneck_dim, config.head_out_dim, bias=False)
            self.last_layer = nn.utils.weight_norm(linear)
        self.last_layer.weight_g.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_dim) -> (N, K)."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class Student(nn.Module):
    """Encoder and four heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.backbone = Encoder(config.drop_path_rate)
        for name, (dim, *_) in zip(("head_1", "head_2", "head_3", "head"), STAGES, strict=True):
            self.add_module(name, Head(dim, config))

    def forward(self, views: list[Tensor]) -> list[list[Tensor]]:
        """Each view through the encoder -> per stage, per view, logits (B, K)."""
        pooled = [self.backbone(view) for view in views]
        heads = (self.head_1, self.head_2, self.head_3, self.head)
        return [[head(view[stage]) for view in pooled] for stage, head in enumerate(heads)]


class Teacher(nn.Module):
    """Encoder and the last head."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(student.backbone)
        self.head = Head(STAGES[-1][0], _config_of(student))
        self.head.load_state_dict(student.head.state_dict())
        self.requires_grad_(False)

    def forward(self, views: list[Tensor]) -> list[Tensor]:
        """Each view -> logits (B, K)."""
        return [self.head(self.backbone(view)[-1]) for view in views]


def _config_of(student: Student) -> ModelConfig:
    """Widths of the student's heads (a module under weight normalisation cannot be deep-copied)."""
    last = student.head.last_layer.weight_v
    return ModelConfig(
        head_hidden_dim=student.head.mlp[0].out_features, head_bottleneck_dim=last.shape[1], head_out_dim=last.shape[0]
    )
