"""Crops to restore: a part of a sub-volume as it is, and the same with blocks of it, or its intensities, corrupted.

Ours, beside the paper's views. Blank blocks are masked image modelling (SimMIM, Xie et al., CVPR 2022); noise, local
shuffling and intensity curves are after Models Genesis (Zhou et al., Medical Image Analysis 67, 2021). A crop is not
resized, mirrored or sampled: it is what fine-tuning will see.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nnunetv2_cads.network_architecture.pvt_v2 import MINIMUM_SIZE
from pretraining.config import PretrainConfig, RestorationConfig
from pretraining.store.store import Store
from pretraining.views.make_views import Box, filled_part, local_radiograph, read_box, show_in_window, xray_view
from pretraining.views.subvolumes import SubVolume

CURVE_RANGE = (-1.0, 1.0)
"""Of what the encoder sees, which an intensity curve maps onto itself."""
CURVE_POINTS = 4
"""Of a curve, its ends among them; drawn as in Models Genesis, which takes a Bezier curve through as many."""


class Crop(NamedTuple):
    """A crop, or a batch of them with a first axis B."""

    seen: Tensor  # (1, D, H, W) corrupted, as the encoder sees it
    truth: Tensor  # (1, D, H, W) HU
    judged: Tensor  # (1, D, H, W) bool: the voxels that count
    xray: Tensor | None = None  # (1, H, W) of the crop's slices and columns, where a run distils along its rays


def make_crop(store: Store, subvolume: SubVolume, config: PretrainConfig, rng: np.random.Generator) -> Crop:
    """Draw a crop of a sub-volume and corrupt it; air lies beyond the scan's edges."""
    settings, filled, box = config.restoration, [subvolume.slices, subvolume.rows, subvolume.columns], []
    for (low, high), edge in zip(filled, settings.restored_crop_size, strict=True):
        start = int(rng.integers(low, max(low, high - edge) + 1))
        box.append((start, start + edge))
    truth = torch.from_numpy(read_box(store, subvolume.volume_id, box, filled).astype(np.float32))
    sound = show_in_window(truth.clone(), config.view.intensity_window).numpy()
    corruption = _CORRUPTIONS[settings.corruption]
    if corruption is None:
        seen, judged = intensity_curve(sound, rng), np.ones(sound.shape, bool)
    else:
        judged = draw_blocks(settings, rng)
        seen = corruption(sound, judged, settings, rng)
    xray = crop_xray(store, subvolume, box, filled, config) if config.place.ray_weight else None
    return Crop(torch.from_numpy(seen)[None], truth[None], torch.from_numpy(judged)[None], xray)


def crop_xray(store: Store, subvolume: SubVolume, box: Box, filled: Box, config: PretrainConfig) -> Tensor:
    """The X-ray (1, H, W) of a crop's slices and columns, through the whole body; rays beyond ``filled`` pass air."""
    inner = filled_part(box, filled)
    radiograph = local_radiograph(store, subvolume.volume_id, inner)
    (below, above), _, sides = ((i[0] - b[0], b[1] - i[1]) for i, b in zip(inner, box, strict=True))
    whole = np.pad(radiograph, ((above, below), sides), constant_values=-1)  # its first row is the last slice
    return xray_view(whole, crop_xray_size(config))


def crop_xray_size(config: PretrainConfig) -> tuple[int, int]:
    """Height and width of a crop's X-ray: its slices and columns, or the least that the encoder takes."""
    depth, _, width = config.restoration.restored_crop_size
    return max(depth, MINIMUM_SIZE[2][0]), max(width, MINIMUM_SIZE[2][1])


def draw_blocks(config: RestorationConfig, rng: np.random.Generator) -> np.ndarray:
    """Which voxels (D, H, W) of a crop to corrupt: the same number of whole blocks in each crop."""
    grid = [-(-edge // block) for edge, block in zip(config.restored_crop_size, config.corrupted_block, strict=True)]
    chosen = np.zeros(np.prod(grid), bool)
    count = min(max(round(config.corrupted_ratio * len(chosen)), 1), len(chosen))
    chosen[rng.permutation(len(chosen))[:count]] = True
    voxels = chosen.reshape(grid)
    for axis, block in enumerate(config.corrupted_block):
        voxels = voxels.repeat(block, axis)
    depth, height, width = config.restored_crop_size
    return np.ascontiguousarray(voxels[:depth, :height, :width])


def _blank(image: np.ndarray, chosen: np.ndarray, _: RestorationConfig, __: np.random.Generator) -> np.ndarray:
    """0 in the chosen voxels: the middle of what the encoder sees, 0 HU as published."""
    return np.where(chosen, np.float32(0), image)


def _noise(image: np.ndarray, chosen: np.ndarray, _: RestorationConfig, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise with the crop's own mean and standard deviation in the chosen voxels."""
    noise = rng.standard_normal(image.shape, np.float32) * image.std() + image.mean()
    return np.where(chosen, noise, image)


def _shuffle(image: np.ndarray, chosen: np.ndarray, config: RestorationConfig, rng: np.random.Generator) -> np.ndarray:
    """The voxels of each chosen block in a random order."""
    blocks = np.arange(image.size).reshape(image.shape)
    of_block = np.zeros(image.shape, np.int64)
    for axis, (edge, block) in enumerate(zip(image.shape, config.corrupted_block, strict=True)):
        of_axis = np.arange(edge) // block
        of_block = of_block * (of_axis[-1] + 1) + of_axis.reshape([-1 if axis == k else 1 for k in range(3)])
    places = blocks[chosen]
    by_block = np.argsort(of_block[chosen], kind="stable")  # the voxels, block after block, in their order ...
    shuffled = np.lexsort((rng.random(len(places)), of_block[chosen]))  # ... and in a random one
    seen = image.copy()
    seen.flat[places[by_block]] = image.flat[places[shuffled]]
    return seen


def intensity_curve(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random monotonous curve, rising or falling, applied to all intensities."""
    low, high = CURVE_RANGE
    points = np.sort(rng.uniform(low, high, (2, CURVE_POINTS - 2)), axis=1)
    ends = np.array([[low, high], [low, high]])
    x, y = (np.concatenate([end[:1], inner, end[1:]]) for end, inner in zip(ends, points, strict=True))
    t = np.linspace(0, 1, 100)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    curve = weights @ (y if rng.random() < 0.5 else y[::-1])
    return np.interp(image, weights @ x, curve).astype(np.float32)


_CORRUPTIONS: dict[str, Callable[..., np.ndarray] | None] = {
    "blank": _blank, "noise": _noise, "shuffle": _shuffle, "curve": None,
}  # fmt: skip
