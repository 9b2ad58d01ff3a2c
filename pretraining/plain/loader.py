"""The baseline of the loader's benchmark and of the test of the views' distribution: a plain reading of the method.

In our own words, after the method's sections 1.3 and 2: each sub-volume is a gzipped NIfTI, read whole as float64, from
which crops are cut; resizing is scikit-image's, intensity augmentation batchgenerators'. Both draw from the global
generators of `numpy` and `random`. Each function does one step as its text says it, with no thought of speed.
"""

# ruff: noqa: NPY002  (the global generator is what batchgenerators draws from)

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from batchgenerators.transforms.abstract_transforms import Compose
from batchgenerators.transforms.color_transforms import (
    BrightnessMultiplicativeTransform,
    BrightnessTransform,
    ContrastAugmentationTransform,
    GammaTransform,
)
from batchgenerators.transforms.noise_transforms import GaussianBlurTransform, GaussianNoiseTransform
from skimage.transform import resize

from pretraining.config import ViewConfig
from pretraining.store.store import Store
from pretraining.views.subvolumes import SubVolume

AIR_HU = -1024


@dataclass(frozen=True)
class PlainSample:
    """The files of one sub-volume."""

    window: Path
    radiograph: Path


def write_windows(store: Store, subvolumes: list[SubVolume], folder: Path) -> list[PlainSample]:
    """Write each sub-volume as int16 HU to a gzipped NIfTI of its own, axes (x, y, z); radiographs once per volume."""
    samples = []
    for number, subvolume in enumerate(subvolumes):
        sample = PlainSample(folder / f"{number}.nii.gz", folder / f"{subvolume.volume_id}.npy")
        region = tuple(slice(*limits) for limits in (subvolume.slices, subvolume.rows, subvolume.columns))
        window = store.volume(subvolume.volume_id)[region]
        nibabel.save(nibabel.Nifti1Image(window.transpose(), np.eye(4)), sample.window)
        np.save(sample.radiograph, store.radiograph(subvolume.volume_id))
        samples.append(sample)
    return samples


def intensity_transforms(view: int) -> Compose:
    """The method's intensity augmentation for view 0 or 1."""
    return Compose([
        GaussianNoiseTransform(noise_variance=(0, 0.1)),
        GaussianBlurTransform((0.1, 2.0), p_per_channel=(0.8, 0.5)[view], p_per_sample=0.8),
        BrightnessMultiplicativeTransform((0.75, 1.25), p_per_sample=(0.8, 1.0)[view]),
        BrightnessTransform(0.0, 0.4, per_channel=True, p_per_sample=(0.8, 0.5)[view], p_per_channel=0.8),
        ContrastAugmentationTransform((0.75, 1.25), preserve_range=True),
        GammaTransform((0.7, 1.5), per_channel=True, retain_stats=True, p_per_sample=(0.8, 1.0)[view]),
    ])  # fmt: skip


class PlainLoader:
    """Makes the three views of a sub-volume from its files.

    Args:
        config: the views' sizes and ranges; the intensity augmentation is always the published one.
    """

    def __init__(self, config: ViewConfig) -> None:
        self.config = config
        self.transforms = [intensity_transforms(view) for view in range(2)]

    def __call__(self, sample: PlainSample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CT views 1 and 2 (1, D, H, W), sampled, and the X-ray view (1, H, W); float32."""
        window = nibabel.load(sample.window).get_fdata().transpose()
        xray = resize(np.load(sample.radiograph), self.config.crop_size[1:], order=1, mode="edge", anti_aliasing=False)
        first, second = self.ct_views(window)
        return first, second, xray[None].astype(np.float32)

    def ct_views(self, window: np.ndarray) -> list[np.ndarray]:
        """Both CT views (1, D, H, W) of a window (slices, height, width) in HU."""
        crop = self.common_crop(window)
        return [self.ct_view(crop, transforms) for transforms in self.transforms]

    def common_crop(self, window: np.ndarray) -> np.ndarray:
        """Pad with air to the least size, cut out the part that both views share, scale it."""
        least = (self.config.window_slices, *self.config.crop_size[1:])
        missing = [max(0, size - have) for size, have in zip(least, window.shape, strict=True)]
        if any(missing):
            window = np.pad(window, [(m // 2, m - m // 2) for m in missing], constant_values=AIR_HU)
        edges = [self.config.window_slices]
        for size, have in zip(self.config.crop_size[1:], window.shape[1:], strict=True):
            edge = round(size * np.random.uniform(*self.config.common_crop_scale))
            edges.append(edge if edge <= have else size)
        return (random_crop(window, edges) / 1024).astype(np.float32)

    def ct_view(self, crop: np.ndarray, transforms: Compose) -> np.ndarray:
        """Crop, mirror, resize, augment and sample one view."""
        depth, *in_plane = self.config.crop_size
        edges = [depth] + [round(size * np.random.uniform(*self.config.view_scale)) for size in in_plane]
        view = random_crop(crop, [min(edge, have) for edge, have in zip(edges, crop.shape, strict=True)])
        for axis in range(3):
            if np.random.uniform() < self.config.mirror_probability:
                view = np.flip(view, axis)
        view = resize(view, self.config.crop_size, order=1, mode="edge", anti_aliasing=False)
        view = transforms(data=view[None, None])["data"][0, 0]
        return keep_a_quarter(view, self.config.sampling_patch_size)[None].astype(np.float32)


def random_crop(image: np.ndarray, edges: list[int]) -> np.ndarray:
    """A part of the given size, anywhere in the image."""
    starts = [np.random.randint(have - edge + 1) for edge, have in zip(edges, image.shape, strict=True)]
    return image[tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))]


def keep_a_quarter(view: np.ndarray, patch_size: tuple[int, int, int]) -> np.ndarray:
    """Uniform sampling: one patch of every 2 x 2 in-plane group, in row-major order of the patch grid."""
    (d, h, w), (pd, ph, pw) = (size // patch for size, patch in zip(view.shape, patch_size, strict=True)), patch_size
    choices = np.random.permutation(np.arange(d * h * w // 4) % 4).reshape(d, h // 2, 1, w // 2, 1)
    kept = (choices == np.array([[0, 1], [2, 3]])[:, None]).reshape(d, h, w)
    patches = view.reshape(d, pd, h, ph, w, pw).transpose(0, 2, 4, 1, 3, 5)[kept]
    patches = patches.reshape(d, h // 2, w // 2, pd, ph, pw).transpose(0, 3, 1, 4, 2, 5)
    return patches.reshape(d * pd, h // 2 * ph, w // 2 * pw)
