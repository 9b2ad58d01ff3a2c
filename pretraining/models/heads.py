"""Projection heads: pooled features of one encoder stage -> K logits.

Paper: CADS (IEEE TMI 2025), after DINO (Caron et al., ICCV 2021); CADS method, section 4.
Deviations: optional batch normalisation after the hidden layers (off as published), which keeps small batches from
collapsing to one output (docs/pretraining.md).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.config import ModelConfig


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
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


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
                layers.append(nn.BatchNorm1d(config.head_hidden_dim))
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
