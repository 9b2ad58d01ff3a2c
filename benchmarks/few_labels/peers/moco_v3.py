"""MoCo v3 on the encoder of CADS.

Paper: Chen, Xie, He, An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021, algorithm 1.
Source: written from the paper: projector and predictor with batch normalisation, a momentum encoder, symmetric InfoNCE
over the batch with temperature 0.2, scaled by twice the temperature.
Deviations: the two CT views, optimiser and schedules are CADS's; widths are smaller, as batches are.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from few_labels.peers.training import Peer, frozen_copy
from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining.method.student_teacher import pool
from pretraining.run.estimate import forward_flops

TEMPERATURE = 0.2


def mlp(widths: tuple[int, ...], last_norm: bool) -> nn.Sequential:
    """Linear layers with batch normalisation; ReLU after all but the last."""
    layers: list[nn.Module] = []
    pairs = list(itertools.pairwise(widths))
    for i, (inner, outer) in enumerate(pairs):
        last = i == len(pairs) - 1
        layers.append(nn.Linear(inner, outer, bias=False))
        if not last:
            layers += [nn.BatchNorm1d(outer), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(nn.BatchNorm1d(outer, affine=False))
    return nn.Sequential(*layers)


class MoCoV3(Peer):
    """Encoder, projector and predictor, with a momentum copy of the first two."""

    def __init__(self, hidden_dim: int = 512, out_dim: int = 256) -> None:
        super().__init__()
        self.encoder = PVTv2Encoder()
        self.projector = mlp((self.encoder.channels[-1], hidden_dim, hidden_dim, out_dim), last_norm=True)
        self.predictor = mlp((out_dim, hidden_dim, out_dim), last_norm=True)
        self.momentum_encoder, self.momentum_projector = frozen_copy(self.encoder), frozen_copy(self.projector)

    def loss(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        """Symmetric InfoNCE of two views (B, 1, D, H, W), ()."""
        views = torch.cat([view_1, view_2])
        return self.loss_of_maps(views, self.encoder(views)[-1])

    def loss_of_maps(self, views: Tensor, last_map: Tensor) -> Tensor:
        """The same, ().

        Args:
            views: both (2B, 1, D, H, W), the second ones after the first ones.
            last_map: the encoder's of them, (2B, C, D', H', W').
        """
        queries = [self.predictor(self.projector(z)) for z in pool(last_map).chunk(2)]
        with torch.no_grad():
            keys = [self.momentum_projector(z) for z in pool(self.momentum_encoder(views)[-1]).chunk(2)]
        return contrast(queries[0], keys[1]) + contrast(queries[1], keys[0])

    @torch.no_grad()
    def after_step(self, momentum: float) -> None:
        """Move the momentum copies."""
        for own, source in (
            (self.momentum_encoder, self.encoder),
            (self.momentum_projector, self.projector),
        ):
            torch._foreach_lerp_(list(own.parameters()), list(source.parameters()), 1.0 - momentum)

    def step_flops(self, view_1: Tensor, view_2: Tensor) -> float:
        """Of a training step on two views (B, 1, D, H, W); the momentum half of the forward pass has no backward."""
        return 2.0 * forward_flops(self.loss, view_1, view_2)


def contrast(queries: Tensor, keys: Tensor) -> Tensor:
    """InfoNCE of (B, C) queries whose own key is that of the same row, ()."""
    logits = F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T / TEMPERATURE
    return 2 * TEMPERATURE * F.cross_entropy(logits, torch.arange(len(logits)))
