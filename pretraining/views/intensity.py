"""Intensity augmentation of CT views.

CADS method, section 2.3. The transforms have the semantics of batchgenerators' (which the tests compare them with):
"noise variance" is used as the standard deviation there, and contrast and gamma factors are below 1 and above 1 with
equal probability. Ours: float32 throughout and a generator passed in, so that a view depends on its seed alone; and
the voxels that uniform sampling drops are computed only as far as the others depend on them, which is through noise and
blur, and through the means, extremes and standard deviations that contrast and gamma use.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_BLOCK = 24  # rows of a filter's matrix that are multiplied at a time, without the columns they do not reach


@dataclass(frozen=True)
class IntensityAugmentation:
    """Ranges and probabilities, in the order of application. Intensities are those that the encoder sees.

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

    def __call__(self, x: Tensor, rng: np.random.Generator, keep: Callable[[Tensor], Tensor]) -> Tensor:
        """Augment one single-channel view.

        Args:
            x: (D, H, W), float32; overwritten.
            rng: source of every random number.
            keep: picks the voxels of a view (D, H, W) that are wanted, in a new tensor.

        Returns:
            ``keep`` of the augmented view.
        """
        if rng.random() < self.noise_p:
            # PyTorch's normal numbers take a third of the time of NumPy's
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            x = torch.randn(x.shape, generator=generator).mul_(rng.uniform(*self.noise)).add_(x)
        x = x.contiguous()
        if rng.random() < self.blur_p:
            x = _blur(x, rng.uniform(*self.blur_sigma))
        # brightness and contrast are not applied yet: the view is to be clamp(scale * x + offset, low, high)
        scale = rng.uniform(*self.multiply) if rng.random() < self.multiply_p else 1.0
        offset = rng.normal(0.0, self.add_sigma) if rng.random() < self.add_p else 0.0
        low, high = (scale * extreme.item() + offset for extreme in torch.aminmax(x))
        if rng.random() < self.contrast_p:
            factor = _around_one(self.contrast, rng)
            mean = scale * x.mean().item() + offset
            scale, offset = factor * scale, factor * (offset - mean) + mean
            if factor < 1:  # nothing is clipped: the range narrows
                low, high = (factor * (extreme - mean) + mean for extreme in (low, high))
        if rng.random() < self.gamma_p:
            return _gamma(x, scale, offset, low, high, _around_one(self.gamma, rng), keep)
        return keep(x).mul_(scale).add_(offset).clamp_(low, high)


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


def _blur(x: Tensor, sigma: float) -> Tensor:
    """What `scipy.ndimage.gaussian_filter` computes of (D, H, W), as products with banded matrices.

    Such products are what a CPU does fastest: a sixth to a quarter of SciPy's time for a view of 16 x 96 x 96.
    """
    radius = int(4 * sigma + 0.5)
    if radius == 0:
        return x
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    depth, height, width = x.shape
    matrices = {size: _filter_matrix(weights, size) for size in set(x.shape)}
    x = _multiply(matrices[depth], x.view(1, depth, height * width), radius).view(depth, height, width)
    x = _multiply(matrices[height], x, radius).view(1, depth * height, width)
    return _multiply(matrices[width], x.mT, radius).mT.view(depth, height, width)


def _filter_matrix(weights: np.ndarray, size: int) -> Tensor:
    """The symmetric matrix (size, size) that filters ``size`` voxels, mirrored about their outer faces."""
    radius = len(weights) // 2
    period = np.zeros(2 * size)  # the mirrored voxels repeat after 2 * size: what each contributes to voxel 0
    np.add.at(period, np.arange(-radius, radius + 1) % (2 * size), weights)
    voxel = np.arange(size)
    matrix = period[voxel[:, None] - voxel] + period[(voxel[:, None] + voxel + 1) % (2 * size)]
    return torch.from_numpy(matrix.astype(np.float32))


def _multiply(matrix: Tensor, x: Tensor, radius: int) -> Tensor:
    """``matrix @ x`` for x (B, N, M) and a matrix (N, N) that is zero beyond ``radius`` of its diagonal."""
    product = torch.empty_like(x)
    for start in range(0, len(matrix), _BLOCK):
        rows, reach = slice(start, start + _BLOCK), slice(max(0, start - radius), start + _BLOCK + radius)
        band = matrix[rows, reach].expand(len(x), -1, -1)
        torch.bmm(band, x[:, reach], out=product[:, rows])
    return product


def _gamma(
    x: Tensor, scale: float, offset: float, low: float, high: float, exponent: float, keep: Callable[[Tensor], Tensor]
) -> Tensor:
    """Gamma of clamp(scale * x + offset, low, high), whose extremes are ``low`` and ``high``; overwrites ``x``."""
    extent = high - low + 1e-7
    unit = x.mul_(scale / extent).add_((offset - low) / extent).clamp_(0, (high - low) / extent)
    mean, std = _mean_and_std(unit)
    # unit ** exponent; NumPy's logarithm and PyTorch's exponential are the fastest of the two libraries
    with np.errstate(divide="ignore"):
        np.log(unit.numpy(), out=unit.numpy())
    power = unit.mul_(exponent / math.log(2)).exp2_()
    power_mean, power_std = _mean_and_std(power)
    return keep(power).sub_(power_mean).mul_(extent * std / (power_std + 1e-8)).add_(low + extent * mean)


def _mean_and_std(x: Tensor) -> tuple[float, float]:
    """Of all voxels, in two passes for accuracy; `torch.std` takes twenty times as long."""
    mean = x.mean().item()
    deviation = (x - mean).flatten()
    return mean, math.sqrt(torch.dot(deviation, deviation).item() / x.numel())
