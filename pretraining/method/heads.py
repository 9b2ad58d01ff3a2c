"""Projection heads: pooled features of one encoder stage -> K logits.

Paper: CADS (IEEE TMI 2025), after DINO (Caron et al., ICCV 2021); CADS method, section 4.
Deviations: optional batch normalisation after the hidden layers (off as published), which keeps small batches from
collapsing to one output (docs/pretraining.md).
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nnunetv2_cads.network_architecture.ops.linear import convolution_is_faster, multiply, multiply_transposed
from pretraining.config import ModelConfig

ROWS_AT_ONCE = 4096
"""How many rows of the last layer a CPU works on at a time: 4 MiB, so that what is made of them stays in the cache."""


class _CosineLogits(torch.autograd.Function):
    """x v^T, each column scaled by gain / length of its row of v, without ever forming the scaled v.

    Written out because K x 256 numbers are most of the heads: autograd's own way reads and writes them a dozen times.
    Here each pass reads v once, and the backward pass writes its gradient once.
    On the CPU path, rows of v play the tokens (the long axis) of `ops.linear.multiply`.
    """

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, gain: Tensor) -> Tensor:
        ctx.by_convolution = convolution_is_faster(x)
        lengths, logits = [], []
        for (part,) in _parts(rows):
            lengths.append(torch.linalg.vector_norm(part, dim=1))
            logits.append(multiply(part, x).T if ctx.by_convolution else F.linear(x, part))
        lengths, logits = torch.cat(lengths).clamp_min_(1e-12), torch.cat(logits, dim=1)
        scale = gain[:, 0] / lengths
        logits *= scale.to(logits.dtype)
        ctx.save_for_backward(x, rows, scale, lengths, logits)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, rows, scale, lengths, logits = ctx.saved_tensors
        # a cosine does not change along its row, so that part of the gradient of v, which is this sum, is taken off
        along_rows = (gradient * logits).sum(0, dtype=rows.dtype) / lengths.square()
        gradient = gradient * scale.to(gradient.dtype)
        shown = x.to(gradient.dtype)  # as the logits were made of it
        grad_x, grad_rows = torch.zeros_like(x, dtype=rows.dtype), torch.empty_like(rows)
        for part, columns, along, out in _parts(rows, gradient.T, along_rows[:, None], grad_rows):
            if ctx.by_convolution:
                columns = columns.contiguous()
                grad_x += multiply_transposed(columns, part)
                grad_part = multiply(columns, x.T)
            else:
                grad_x += columns.T @ part.to(columns.dtype)
                grad_part = columns @ shown
            torch.addcmul(grad_part.to(rows.dtype), part, along, value=-1, out=out)
        return grad_x.to(x.dtype), grad_rows, None


def _parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The same rows of tensors (K, ...), `ROWS_AT_ONCE` at a time; a GPU, whose caches are small, takes all at once."""
    count = len(tensors[0])
    in_parts = tensors[0].device.type == "cpu" and not torch.compiler.is_compiling()
    at_once = ROWS_AT_ONCE if in_parts else count
    return list(zip(*(tensor.split(at_once) for tensor in tensors), strict=True))


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose rows have length ``weight_g``, fixed at 1: the logits are cosines.

    ``weight_g`` is a parameter that takes no gradient, so that checkpoints keep the published keys.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=False)
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.trunc_normal_(self.weight_v, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_features) -> (N, out_features)."""
        return _CosineLogits.apply(x, self.weight_v, self.weight_g)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation over the batches of all ranks, on CPU and on CUDA; all ranks must have batches of one size.

    (`torch.nn.SyncBatchNorm` is for CUDA alone.)
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) -> (N, C)."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        values = x.float()
        count = len(x) * dist.get_world_size()
        mean = _SumOverRanks.apply(values.sum(0)) / count
        variance = _SumOverRanks.apply((values - mean).square().sum(0)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        normalised = (values - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias
        return normalised.to(x.dtype)


class ProjectionHead(nn.Module):
    """Three-layer perceptron, L2 normalisation, weight-normalised last layer.

    Args:
        in_dim: channels of the stage.
        config: widths, and whether hidden layers are batch-normalised.
    """

    def __init__(self, in_dim: int, config: ModelConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for dim in (in_dim, config.head_hidden_dim):
            layers.append(nn.Linear(dim, config.head_hidden_dim))
            if config.head_batch_norm:
                layers.append(GlobalBatchNorm1d(config.head_hidden_dim))
            layers.append(nn.GELU())
        layers.append(nn.Linear(config.head_hidden_dim, config.head_bottleneck_dim))
        self.mlp = nn.Sequential(*layers)
        self.last_layer = WeightNormLinear(config.head_bottleneck_dim, config.head_out_dim)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (N, in_dim) -> logits (N, K)."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))
