"""Pairs of crops that show the same part of a scan, each turned, scaled and augmented on its own, and points in both.

Ours. What is contrasted is where a point lies in the body and what is around it: see `pretraining.method.points`.
Nothing is mirrored, since left and right are what a segmentation must tell apart.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.config import PointConfig, PretrainConfig
from pretraining.store.store import Store
from pretraining.views.intensity import IntensityAugmentation
from pretraining.views.make_views import PADDING_HU, draw_window, one_thread, read_box, show_in_window
from pretraining.views.subvolumes import SubVolume

TISSUE_HU = -400.0
"""Points are drawn from voxels above it: from all but air and lung."""
LARGEST_SHIFT = 0.2
"""Of the middle of a crop from the middle of the pair, in sizes of that crop."""
MARGIN = 2.0
"""Voxels that a point is away from the faces of both crops."""
CANDIDATES_PER_POINT = 16
MOST_DRAWS = 8
"""Of candidates, until there are enough points."""
INTENSITY = IntensityAugmentation(
    noise=(0.0, 0.12), noise_p=0.5,
    blur_sigma=(0.3, 1.0), blur_p=0.3,
    multiply=(0.7, 1.35), multiply_p=0.5,
    add_sigma=0.1, add_p=0.5,
    contrast=(1.0, 1.0), contrast_p=0.0,
    gamma=(0.67, 1.5), gamma_p=0.5,
)  # fmt: skip
"""Of each crop, in what the encoder sees."""


class PointPair(NamedTuple):
    """Two crops and N points that both show; with a first axis B, of a batch."""

    crop_1: Tensor  # (1, D, H, W), as the encoder sees it
    crop_2: Tensor
    points_1: Tensor  # (N, 3): slice, row, column in crop 1, in voxels; 0 is the middle of the first
    points_2: Tensor  # (N, 3): the same points in crop 2


class Placement(NamedTuple):
    """Where a crop lies in a scan: voxel x of the crop, counted from its middle, is voxel ``matrix @ x + middle``."""

    matrix: np.ndarray  # (3, 3)
    middle: np.ndarray  # (3,)


def make_point_pair(store: Store, subvolume: SubVolume, config: PretrainConfig, rng: np.random.Generator) -> PointPair:
    """Draw a pair of crops around a place of a sub-volume; they may reach beyond it, and air is beyond the scan."""
    with one_thread():
        return _make_point_pair(store, subvolume, config, rng)


def point_in_the_middle(pair: PointPair) -> PointPair:
    """Of each pair of a batch the one point that is nearest to the middle of crop 1: points of (B, 1, 3)."""
    middle = (torch.tensor(pair.crop_1.shape[2:]) - 1) / 2
    nearest = (pair.points_1 - middle).norm(dim=-1).argmin(1)
    rows, last = torch.arange(len(nearest)), torch.tensor(pair.crop_1.shape[2:]) - 1
    # of crops that do not meet, the point may lie outside of both
    one, two = (points[rows, nearest, None].clamp(min=0).minimum(last) for points in (pair.points_1, pair.points_2))
    return pair._replace(points_1=one, points_2=two)


def _make_point_pair(store: Store, subvolume: SubVolume, config: PretrainConfig, rng: np.random.Generator) -> PointPair:
    settings = config.point
    size, shape = np.array(settings.point_crop_size), store.shape(subvolume.volume_id)
    middle = _draw_tissue(store, subvolume, rng)
    # a crop whose middle is closer than that to an end of the scan shows more air than need be
    margin = np.minimum(size, shape) / 2
    middle = np.clip(middle, margin - 0.5, shape - margin - 0.5)
    placements = [_draw_placement(middle, settings, rng) for _ in range(2)]
    reach = [np.abs(placement.matrix) @ ((size - 1) / 2) for placement in placements]
    low = np.min([p.middle - r for p, r in zip(placements, reach, strict=True)], axis=0)
    high = np.max([p.middle + r for p, r in zip(placements, reach, strict=True)], axis=0)
    origin = np.floor(low).astype(int)
    box = list(zip(origin.tolist(), (np.ceil(high).astype(int) + 1).tolist(), strict=True))
    hu = read_box(store, subvolume.volume_id, box, [(0, edge) for edge in shape])
    points = _draw_points(hu, origin, placements, settings, rng)
    above_air, crops = torch.from_numpy(hu.astype(np.float32)).sub_(PADDING_HU), []
    for placement in placements:
        crop = _resample(above_air, placement._replace(middle=placement.middle - origin), size.tolist())
        shown = show_in_window(crop, draw_window(config.view, rng))
        crops.append(INTENSITY(shown, rng, torch.clone)[None])
    return PointPair(*crops, *(torch.from_numpy(_in_crop(points, p, size).astype(np.float32)) for p in placements))


def _draw_tissue(store: Store, subvolume: SubVolume, rng: np.random.Generator) -> np.ndarray:
    """A voxel of tissue (3,) in a random slice of the sub-volume; where there is none, the middle of that slice."""
    z = int(rng.integers(*subvolume.slices))
    slices = store.window(subvolume.volume_id, (slice(z, z + 1), slice(*subvolume.rows), slice(*subvolume.columns)))
    tissue = np.flatnonzero(slices[0] > TISSUE_HU)
    height, width = slices.shape[1:]
    place = tissue[rng.integers(len(tissue))] if len(tissue) else height // 2 * width + width // 2
    return np.array([z, subvolume.rows[0] + place // width, subvolume.columns[0] + place % width], float)


def _draw_placement(middle: np.ndarray, config: PointConfig, rng: np.random.Generator) -> Placement:
    shift = rng.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, 3) * config.point_crop_size
    angles = np.radians(rng.uniform(-1, 1, 3) * config.point_rotation)
    scale = math.exp(rng.uniform(*np.log(config.point_scale)))
    return Placement(rotation(angles) * scale, middle + shift * scale)


def rotation(angles: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) by ``angles`` (3,), in radians, about the axes of slices, rows and columns."""
    turned = np.eye(3)
    for axis, angle in enumerate(angles):
        one, other = (k for k in range(3) if k != axis)
        about = np.eye(3)
        about[one, one] = about[other, other] = math.cos(angle)
        about[one, other], about[other, one] = -math.sin(angle), math.sin(angle)
        turned = turned @ about
    return turned


def _in_crop(points: np.ndarray, placement: Placement, size: np.ndarray) -> np.ndarray:
    """Voxels (N, 3) of the scan as voxels of the crop."""
    return (points - placement.middle) @ np.linalg.inv(placement.matrix).T + (size - 1) / 2


def _draw_points(
    hu: np.ndarray, origin: np.ndarray, placements: list[Placement], config: PointConfig, rng: np.random.Generator
) -> np.ndarray:
    """Points (N, 3) of the scan that both crops show: of tissue if there are enough, else of air, too."""
    size, (first, second) = np.array(config.point_crop_size), placements
    tissue, air = np.empty((0, 3)), np.empty((0, 3))
    for _ in range(MOST_DRAWS):
        candidates = rng.uniform(MARGIN, size - 1 - MARGIN, (config.point_count * CANDIDATES_PER_POINT, 3))
        scan = (candidates - (size - 1) / 2) @ first.matrix.T + first.middle
        in_second = _in_crop(scan, second, size)
        scan = scan[np.all((in_second >= MARGIN) & (in_second <= size - 1 - MARGIN), axis=1)]
        inside = np.clip(np.rint(scan - origin).astype(int), 0, np.array(hu.shape) - 1)
        of_tissue = hu[tuple(inside.T)] > TISSUE_HU
        tissue, air = np.concatenate([tissue, scan[of_tissue]]), np.concatenate([air, scan[~of_tissue]])
        if len(tissue) >= config.point_count:
            break
    found = np.concatenate([tissue, air])
    if not len(found):  # crops that hardly meet: one point, N times, teaches nothing
        found = np.mean([first.middle, second.middle], axis=0, keepdims=True)
    return np.resize(found, (config.point_count, 3))


def _resample(above_air: Tensor, placement: Placement, size: list[int]) -> Tensor:
    """The crop (D, H, W), linearly interpolated, of a box of a scan less the HU of air; beyond the box is air."""
    extent = np.array(above_air.shape) - 1
    half = (np.array(size) - 1) / 2
    # grid_sample's coordinates: -1 and 1 are the middles of the first and last voxel, columns first
    matrix = placement.matrix * half / (extent / 2)[:, None]
    offset = placement.middle / (extent / 2) - 1
    theta = torch.from_numpy(np.concatenate([matrix, offset[:, None]], 1)[::-1, [2, 1, 0, 3]].astype(np.float32))
    grid = F.affine_grid(theta[None], [1, 1, *size], align_corners=True)
    return F.grid_sample(above_air[None, None], grid, align_corners=True)[0, 0].add_(PADDING_HU)
