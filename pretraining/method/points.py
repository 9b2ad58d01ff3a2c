"""Contrast of points: the same point of a scan in two crops has the same features, and no other point of it has.

Ours; dense contrast of voxels is after SAM (Yan et al., IEEE TMI 2022) and vox2vec (Goncharov et al., MICCAI 2023).
Each level (the encoder's maps: stem and stages) has a head and a loss of its own, and so learns what is at its scale.
The other points that a point must be told from are those of its own pair: the same organ of another patient is not
among them, and a batch's loss does not depend on how it is split over parts and processes.
"""

import itertools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.pvt_unet import STRIDES
from pretraining.config import LEVELS

HIDDEN_DIM, OUT_DIM = 256, 128
"""Of the heads."""
VOXELS_OF_CELL: tuple[tuple[int, ...], ...] = tuple(
    itertools.accumulate(STRIDES[3], lambda a, b: tuple(i * j for i, j in zip(a, b, strict=True)))
)
"""Along each axis, for each of the encoder's maps."""


class PointHeads(nn.Module):
    """A small perceptron for each level.

    Args:
        channels: of the encoder's maps, finest first.
        levels: names of those that have a loss, in `LEVELS`.
    """

    def __init__(self, channels: Sequence[int], levels: Iterable[str]) -> None:
        super().__init__()
        self.levels = [LEVELS.index(name) for name in levels]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(channels[level], HIDDEN_DIM), nn.GELU(), nn.Linear(HIDDEN_DIM, OUT_DIM))
            for level in self.levels
        )

    def forward(self, maps: Sequence[Tensor], points: Tensor) -> list[Tensor]:
        """Features of unit length for each level, (B, N, C), of ``points`` (B, N, 3) in voxels of the input."""
        at_points = (features_at(maps[level], points, level) for level in self.levels)
        return [F.normalize(head(of).float(), dim=-1) for head, of in zip(self.heads, at_points, strict=True)]


def features_at(feature_map: Tensor, points: Tensor, level: int) -> Tensor:
    """A map's features (B, N, C) at ``points`` (B, N, 3) of the input, linearly interpolated.

    A cell's middle is that of the voxels that the decoder makes of it, not that of the convolution which made the cell.

    Args:
        feature_map: (B, C, D, H, W).
        points: slice, row, column in voxels of the input; 0 is the middle of the first.
        level: of the map; 0 is the stem's.
    """
    axes = []
    for axis, (stride, size) in enumerate(zip(VOXELS_OF_CELL[level], feature_map.shape[2:], strict=True)):
        cell = (points[..., axis] - (stride - 1) / 2) / stride
        axes.append(2 * cell / max(size - 1, 1) - 1)  # grid_sample's: -1 and 1 are the middles of the outer cells
    grid = torch.stack(axes[::-1], dim=-1)[:, None, None]
    sampled = F.grid_sample(feature_map.float(), grid, align_corners=True, padding_mode="border")
    return sampled[:, :, 0, 0].transpose(1, 2)


def contrast(features: Sequence[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding each point of a crop among those of the other, both ways (InfoNCE).

    Args:
        features: for each level (2B, N, C) of unit length, first crops, then second ones, the points in one order.
        temperature: of the softmax over the N points of a pair.

    Returns:
        The losses of the levels (L,), and the fractions of points that are found (L,), without a gradient.
    """
    losses, found = [], []
    for of_level in features:
        first, second = of_level.chunk(2)
        logits = first @ second.mT / temperature  # (B, N, N)
        right = torch.arange(logits.shape[-1], device=logits.device).expand(len(logits), -1)
        both = [F.cross_entropy(scores.flatten(0, 1), right.flatten()) for scores in (logits, logits.mT)]
        losses.append((both[0] + both[1]) / 2)
        found.append((logits.detach().argmax(-1) == right).float().mean())
    return torch.stack(losses), torch.stack(found)
