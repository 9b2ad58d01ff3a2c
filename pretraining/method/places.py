"""Distillation place by place: what student and teacher say about each place of a crop.

Ours: the paper pools whole views, so that nothing says where in a view something lies. Here each stage's map is pooled
to the grid of the last one, whose cells are the places. Tokens: the student's features of a corrupted crop against the
teacher's of the sound one, after iBOT (Zhou et al., ICLR 2022). Rays: the student's features of the crop's X-ray
against the teacher's of the crop, averaged along the rays that end in the same place.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Places(NamedTuple):
    """Something of both kinds of places; empty where a kind has no weight."""

    tokens: Any
    rays: Any


def cells(feature_map: Tensor, grid: Sequence[int]) -> Tensor:
    """The mean over each cell of a grid: (B, C, [D,] H, W) -> (B x cells, C)."""
    pool = F.adaptive_avg_pool3d if len(grid) == 3 else F.adaptive_avg_pool2d
    return pool(feature_map, tuple(grid)).flatten(2).transpose(1, 2).flatten(0, 1)


def along_rays(ct_map: Tensor) -> Tensor:
    """The mean over the rows, along which the rays of a frontal X-ray run: (B, C, D, H, W) -> (B, C, D, W)."""
    return ct_map.mean(3)


def in_order_of_slices(xray_map: Tensor) -> Tensor:
    """An X-ray's map (B, C, H, W), which is drawn head up, with its rows in the order of a CT's slices."""
    return xray_map.flip(2)
