"""From a sub-volume to two CT views and an X-ray view (CADS method, section 2).

Ours: only the common crop is read from the store, all arithmetic is float32, volumes smaller than a crop are padded
with air, and every random number comes from the generator passed in, so that a view depends on its seed alone.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.config import ViewConfig
from pretraining.data.intensity import INTENSITY_AUGMENTATIONS, IntensityAugmentation
from pretraining.data.store import Store
from pretraining.data.subvolumes import SubVolume
from pretraining.data.uniform_sampling import sample_uniformly

HU_SCALE = 1024
"""HU are divided by this before anything else."""
AIR_HU = -1024


def make_views(
    store: Store, subvolume: SubVolume, config: ViewConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw the two CT views of a sub-volume, float32.

    Returns:
        Two tensors (1, D, H, W) of ``crop_size``, or half of it in-plane with uniform sampling.
    """
    crop = read_common_crop(store, subvolume, config, rng)
    first, second = INTENSITY_AUGMENTATIONS[config.intensity]
    return _ct_view(crop, config, first, rng), _ct_view(crop, config, second, rng)


def read_common_crop(store: Store, subvolume: SubVolume, config: ViewConfig, rng: np.random.Generator) -> np.ndarray:
    """Read the random in-plane crop that both views share: (D, H, W), float32, HU / 1024, at least ``crop_size``."""
    volume = store.volume(subvolume.volume_id)
    selection = [slice(*subvolume.slices)]
    for (low, high), size in zip((subvolume.rows, subvolume.columns), config.crop_size[1:], strict=True):
        edge = round(size * rng.uniform(*config.common_crop_scale))
        if edge > high - low:
            edge = min(size, high - low)
        start = int(rng.integers(low, high - edge + 1))
        selection.append(slice(start, start + edge))
    crop = volume[tuple(selection)]
    least = (config.window_slices, *config.crop_size[1:])
    missing = [max(0, size - have) for size, have in zip(least, crop.shape, strict=True)]
    if any(missing):
        crop = np.pad(crop, [(m // 2, m - m // 2) for m in missing], constant_values=AIR_HU)
    return crop.astype(np.float32) / HU_SCALE


def resize_in_plane(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Linear resize of the last two axes: (N, H, W) -> (N, *size)."""
    tensor = torch.from_numpy(np.ascontiguousarray(image))[None]
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0].numpy()


def xray_view(radiograph: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A radiograph (slices, width) in [-1, 1] -> (1, *size), without augmentation."""
    return torch.from_numpy(resize_in_plane(radiograph[None].astype(np.float32), size))


def _ct_view(
    crop: np.ndarray, config: ViewConfig, intensity: IntensityAugmentation | None, rng: np.random.Generator
) -> Tensor:
    depth, *in_plane = config.crop_size
    edges = [depth] + [round(size * rng.uniform(*config.view_scale)) for size in in_plane]
    edges = [min(edge, have) for edge, have in zip(edges, crop.shape, strict=True)]
    starts = [int(rng.integers(0, have - edge + 1)) for edge, have in zip(edges, crop.shape, strict=True)]
    view = crop[tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))]
    mirrored = [axis for axis in range(3) if rng.random() < config.mirror_probability]
    view = resize_in_plane(np.flip(view, mirrored), tuple(in_plane))
    if intensity is not None:
        view = intensity(view, rng)
    if config.uniform_sampling:
        view = sample_uniformly(view, config.sampling_patch_size, rng)
    return torch.from_numpy(np.ascontiguousarray(view, dtype=np.float32))[None]
