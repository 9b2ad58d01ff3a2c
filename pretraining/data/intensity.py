"""Intensity augmentation of CT views.

CADS method, section 2.3. The transforms have the semantics of batchgenerators' (which the tests compare them with):
"noise variance" is used as the standard deviation there, and contrast and gamma factors are below 1 and above 1 with
equal probability. Ours: float32 throughout and a generator passed in, so that a view depends on its seed alone.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter


@dataclass(frozen=True)
class IntensityAugmentation:
    """Ranges and probabilities, in the order of application. Intensities are HU / 1024.

    Attributes:
        noise: range of the Gaussian noise's standard deviation.
        blur_sigma: range of the blur's sigma in voxels.
        multiply: range of the brightness factor.
        add_sigma: standard deviation of the added brightness.
        contrast: range of the contrast factor; the value range is kept.
        gamma: range of the exponent; mean and standard deviation are kept.
        *_p: the probability of each.
    """

    noise: tuple[float, float]
    noise_p: float
    blur_sigma: tuple[float, float]
    blur_p: float
    multiply: tuple[float, float]
    multiply_p: float
    add_sigma: float
    add_p: float
    contrast: tuple[float, float]
    contrast_p: float
    gamma: tuple[float, float]
    gamma_p: float

    def __call__(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Augment one single-channel view (D, H, W), float32; returns a new array."""
        if rng.random() < self.noise_p:
            x = x + np.float32(rng.uniform(*self.noise)) * rng.standard_normal(x.shape, dtype=np.float32)
        if rng.random() < self.blur_p:
            x = gaussian_filter(x, rng.uniform(*self.blur_sigma))
        if rng.random() < self.multiply_p:
            x = x * np.float32(rng.uniform(*self.multiply))
        if rng.random() < self.add_p:
            x = x + np.float32(rng.normal(0.0, self.add_sigma))
        if rng.random() < self.contrast_p:
            x = _contrast(x, _around_one(self.contrast, rng))
        if rng.random() < self.gamma_p:
            x = _gamma(x, _around_one(self.gamma, rng))
        return x


_PUBLISHED = {
    "noise": (0.0, 0.1), "noise_p": 1.0,
    "blur_sigma": (0.1, 2.0), "blur_p": 0.8 * 0.8,
    "multiply": (0.75, 1.25), "multiply_p": 0.8,
    "add_sigma": 0.4, "add_p": 0.8 * 0.8,
    "contrast": (0.75, 1.25), "contrast_p": 1.0,
    "gamma": (0.7, 1.5), "gamma_p": 0.8,
}  # fmt: skip
_WEAK = IntensityAugmentation(
    noise=(0.0, 0.003), noise_p=0.5,
    blur_sigma=(0.1, 0.8), blur_p=0.5,
    multiply=(0.9, 1.1), multiply_p=0.5,
    add_sigma=0.05, add_p=0.5,
    contrast=(0.9, 1.1), contrast_p=0.5,
    gamma=(0.9, 1.1), gamma_p=0.5,
)  # fmt: skip

INTENSITY_AUGMENTATIONS: dict[str, tuple[IntensityAugmentation | None, IntensityAugmentation | None]] = {
    "published": (
        IntensityAugmentation(**_PUBLISHED),
        IntensityAugmentation(
            **_PUBLISHED | {"blur_p": 0.8 * 0.5, "multiply_p": 1.0, "add_p": 0.5 * 0.8, "gamma_p": 1.0}
        ),
    ),
    "weak": (_WEAK, _WEAK),
    "none": (None, None),
}
"""For each level, the augmentation of view 1 and of view 2. A per-sample and a per-channel probability multiply."""


def _around_one(limits: tuple[float, float], rng: np.random.Generator) -> float:
    low, high = limits
    return rng.uniform(low, 1.0) if rng.random() < 0.5 and low < 1 else rng.uniform(max(low, 1.0), high)


def _contrast(x: np.ndarray, factor: float) -> np.ndarray:
    mean = x.mean()
    return np.clip((x - mean) * np.float32(factor) + mean, x.min(), x.max())


def _gamma(x: np.ndarray, exponent: float) -> np.ndarray:
    mean, std, low = x.mean(), x.std(), x.min()
    extent = x.max() - low + np.float32(1e-7)
    y = ((x - low) / extent) ** np.float32(exponent)
    return (y - y.mean()) * (std / (y.std() + np.float32(1e-8))) + mean
