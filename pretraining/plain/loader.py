"""From the volumes of a store to batches of views (CADS method, sections 1.3 and 2).

A sub-volume is read whole, and each function does one step as the method says it: resizing is SciPy's, intensity
augmentation batchgenerators', with the published names and arguments. All draw from the global generators of `numpy`
and `random`. Ours: volumes smaller than a crop are padded with air, not with water; a last sub-volume ends flush with
its volume, so that no slice is left out; and the level "weak" of the augmentation.
"""

# ruff: noqa: NPY002  (the global generator is what batchgenerators draws from)

from collections.abc import Iterator

import numpy as np
import torch
from batchgenerators.transforms.abstract_transforms import Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    BrightnessTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
from scipy.ndimage import zoom
from torch import Tensor

from pretraining.config import PretrainConfig, ViewConfig
from pretraining.store.store import Store

AIR_HU = -1024
HU_SCALE = 1024

Region = tuple[slice, slice, slice]


def batches(store: Store, config: PretrainConfig) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches without end: CT views 1 and 2 (B, 1, D, H, W) and X-ray views (B, 1, H, W), float32."""
    subvolumes, views = list_subvolumes(store, config.view), Views(config.view)
    samples = []
    while True:
        for number in np.random.permutation(len(subvolumes)):
            volume_id, region = subvolumes[number]
            samples.append(views(store.window(volume_id, region), store.radiograph(volume_id)))
            if len(samples) == config.optim.batch_size:
                yield tuple(torch.from_numpy(np.stack(arrays)) for arrays in zip(*samples, strict=True))
                samples = []


def list_subvolumes(store: Store, config: ViewConfig) -> list[tuple[str, Region]]:
    """Section 1.3: 24 slices, every 12 slices; of wide volumes, only the central 80% in-plane."""
    subvolumes = []
    for volume_id in store.ids:
        depth, height, width = store.shape(volume_id)
        last = max(0, depth - config.window_slices)
        fraction = config.central_fraction if width * store.spacing_mm > config.wide_volume else 1.0
        for start in [*range(0, last, config.window_stride), last]:
            slices = slice(start, min(start + config.window_slices, depth))
            subvolumes.append((volume_id, (slices, central(height, fraction), central(width, fraction))))
    return subvolumes


def central(size: int, fraction: float) -> slice:
    """The central part of an axis."""
    margin = round(size * (1 - fraction) / 2)
    return slice(margin, size - margin)


class Views:
    """Section 2: makes the three views of a sub-volume.

    Args:
        config: sizes, ranges, and the level of the intensity augmentation.
    """

    def __init__(self, config: ViewConfig) -> None:
        self.config = config
        self.transforms = [intensity_transforms(config.intensity, view) for view in range(2)]

    def __call__(self, subvolume_hu: np.ndarray, radiograph: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(slices, height, width) in HU and a radiograph -> CT views 1 and 2 (1, D, H, W), X-ray (1, H, W); float32."""
        xray = resize(radiograph, self.config.crop_size[1:])  # 2.5: no augmentation
        return *self.ct_views(subvolume_hu), xray[None].astype(np.float32)

    def ct_views(self, subvolume_hu: np.ndarray) -> list[np.ndarray]:
        """Both CT views (1, D, H, W) of a sub-volume (slices, height, width) in HU."""
        crop = self.common_crop(subvolume_hu)
        return [self.ct_view(crop, transforms)[None].astype(np.float32) for transforms in self.transforms]

    def common_crop(self, subvolume_hu: np.ndarray) -> np.ndarray:
        """2.1: the crop that both views share, padded with air to the least size, divided by 1024."""
        least = (self.config.window_slices, *self.config.crop_size[1:])
        missing = [max(0, size - have) for size, have in zip(least, subvolume_hu.shape, strict=True)]
        margins = [(m // 2, m - m // 2) for m in missing]
        padded = np.pad(subvolume_hu, margins, constant_values=AIR_HU)
        edges = [self.config.window_slices]
        for size, have in zip(self.config.crop_size[1:], padded.shape[1:], strict=True):
            edge = round(size * np.random.uniform(*self.config.common_crop_scale))
            edges.append(edge if edge <= have else size)
        return (random_crop(padded, edges) / HU_SCALE).astype(np.float32)

    def ct_view(self, crop: np.ndarray, transforms: Compose) -> np.ndarray:
        """2.2 to 2.4: crop, mirror, resize, augment and sample one view, (D, H, W)."""
        depth, *in_plane = self.config.crop_size
        edges = [depth] + [round(size * np.random.uniform(*self.config.view_scale)) for size in in_plane]
        view = random_crop(crop, [min(edge, have) for edge, have in zip(edges, crop.shape, strict=True)])
        for axis in range(3):
            if np.random.uniform() < self.config.mirror_probability:
                view = np.flip(view, axis)
        view = resize(view, self.config.crop_size)
        view = transforms(data=view[None, None])["data"][0, 0]
        return keep_a_quarter(view, self.config.sampling_patch_size) if self.config.uniform_sampling else view


def intensity_transforms(level: str, view: int) -> Compose:
    """2.3: the intensity augmentation of view 0 or 1; "weak" is ours, for short runs, "none" is without."""
    published = [
        GaussianNoiseTransform(noise_variance=(0, 0.1)),
        GaussianBlurTransform((0.1, 2.0), p_per_channel=(0.8, 0.5)[view], p_per_sample=0.8),
        BrightnessMultiplicativeTransform((0.75, 1.25), p_per_sample=(0.8, 1.0)[view]),
        BrightnessTransform(0.0, 0.4, per_channel=True, p_per_sample=(0.8, 0.5)[view], p_per_channel=0.8),
        ContrastAugmentationTransform((0.75, 1.25), preserve_range=True),
        GammaTransform((0.7, 1.5), per_channel=True, retain_stats=True, p_per_sample=(0.8, 1.0)[view]),
    ]
    weak = [
        GaussianNoiseTransform(noise_variance=(0, 0.003), p_per_sample=0.5),
        GaussianBlurTransform((0.1, 0.8), p_per_sample=0.5),
        BrightnessMultiplicativeTransform((0.9, 1.1), p_per_sample=0.5),
        BrightnessTransform(0.0, 0.05, per_channel=True, p_per_sample=0.5),
        ContrastAugmentationTransform((0.9, 1.1), preserve_range=True, p_per_sample=0.5),
        GammaTransform((0.9, 1.1), per_channel=True, retain_stats=True, p_per_sample=0.5),
    ]
    return Compose({"published": published, "weak": weak, "none": []}[level])


def random_crop(image: np.ndarray, edges: list[int]) -> np.ndarray:
    """A part of the given size, anywhere in the image."""
    starts = [np.random.randint(have - edge + 1) for edge, have in zip(edges, image.shape, strict=True)]
    return image[tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))]


def resize(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Linear, voxels as little cubes: their outer faces stay where they are."""
    factors = [new / old for new, old in zip(size, image.shape, strict=True)]
    return zoom(image, factors, order=1, mode="nearest", grid_mode=True)


def keep_a_quarter(view: np.ndarray, patch_size: tuple[int, int, int]) -> np.ndarray:
    """2.4, uniform sampling: one patch of every 2 x 2 in-plane group, in row-major order of the patch grid.

    Each of the four positions is kept equally often over the view.
    """
    (d, h, w), (pd, ph, pw) = (size // patch for size, patch in zip(view.shape, patch_size, strict=True)), patch_size
    choices = np.random.permutation(np.arange(d * h * w // 4) % 4).reshape(d, h // 2, 1, w // 2, 1)
    kept = (choices == np.array([[0, 1], [2, 3]])[:, None]).reshape(d, h, w)
    patches = view.reshape(d, pd, h, ph, w, pw).transpose(0, 2, 4, 1, 3, 5)[kept]
    patches = patches.reshape(d, h // 2, w // 2, pd, ph, pw).transpose(0, 3, 1, 4, 2, 5)
    return patches.reshape(d * pd, h // 2 * ph, w // 2 * pw)
