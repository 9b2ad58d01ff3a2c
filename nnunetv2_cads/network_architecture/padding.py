"""Padding of inputs that a network cannot take as they are."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def repeat_last_voxels(x: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat the last voxels of (B, C, [D,] H, W) up to ``size``, at the end of each axis, so that maps stay aligned.

    Repetition fits every intensity normalisation (0 is air in one, soft tissue in another), one-hot channels too, and
    puts no new edge into the image.
    """
    missing = [n - have for n, have in zip(size, x.shape[2:], strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [edge for m in reversed(missing) for edge in (0, m)], mode="replicate")
