"""Synthetic, labelled CT of human torsos, deterministic in its configuration and seed.

Not a phantom of any person: simple shapes in anatomical order, varied in size, place, pose and surface, sampled like
CT (partial volume, scanner blur, correlated noise). Liver, spleen, kidneys, bowel, stomach and vena cava share one HU,
so that only position and shape tell them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nnunetv2_cads.demo.torsos.anatomy import LABELS, Build, Tissue, draw_diaphragm, draw_spine_line
from nnunetv2_cads.demo.torsos.bones import rib_parts, spine_parts
from nnunetv2_cads.demo.torsos.canvas import Canvas, Part
from nnunetv2_cads.demo.torsos.fields import correlated_noise, smooth_field
from nnunetv2_cads.demo.torsos.shapes import rotation_matrix
from nnunetv2_cads.demo.torsos.soft_parts import abdomen_parts, chest_parts, vessel_parts, wall_parts

__all__ = ["LABELS", "Torso", "TorsoConfig", "make_torso"]

_CENTRE_MM = (0.0, 2.0, 8.0)  # middle of the field of view in the anatomy's frame, (x, y, z)
_FIELD_MM = (332.0, 236.0, 312.0)  # size of the field of view of an adult, (x, y, z)
_AIR_HU, _CLIP_HU = -1000, (-1024, 3071)


@dataclass(frozen=True)
class TorsoConfig:
    """How torsos look. Ranges are (lowest, highest) of a uniform draw per case."""

    body_scale: float = 0.5
    """Size of the body; 1 is an adult of 33 cm width, 0.5 an infant: fewer voxels, faster."""
    slice_spacing_mm: tuple[float, float] = (2.9, 3.4)
    """Distance of slices in mm."""
    pixel_spacing_mm: tuple[float, float] = (2.7, 3.1)
    """Size of pixels in mm, equal in both directions."""
    organ_contrast_hu: tuple[float, float] = (170.0, 230.0)
    """HU of the parenchymal organs above that of the tissue around them; the lower, the harder."""
    blood_contrast_hu: tuple[float, float] = (60.0, 200.0)
    """HU of the blood in heart and aorta above that of the organs; 0 is a scan without contrast agent."""
    noise_hu: tuple[float, float] = (8.0, 20.0)
    """Standard deviation of the scanner's noise in HU."""
    variation: float = 1.0
    """Factor on everything random about shape, size, place and pose; 0 makes all torsos alike, 2 is much."""
    shown_part: tuple[float, float] = (1.0, 1.0)
    """Part of the slices that a scan shows, at a random height; below 1 as in archives of chest and abdomen scans."""


@dataclass(frozen=True)
class Torso:
    """One case. The array axes (z, y, x) grow headward, to the back and to the patient's left."""

    image_hu: np.ndarray
    """int16 (z, y, x), HU."""
    labels: np.ndarray
    """uint8 (z, y, x), the numbers of `LABELS`."""
    spacing_mm: tuple[float, float, float]
    """Voxel size along (z, y, x) in mm."""


def make_torso(config: TorsoConfig | None = None, seed: int | Sequence[int] = 0) -> Torso:
    """One random torso, the same for the same ``config`` and ``seed``.

    ``seed``: an integer or, for the cases of a data set, a pair (data set's seed, case index).
    Noise, anatomy and pose come from separate streams: changing one field of ``config`` keeps the rest of the case.
    """
    config = config or TorsoConfig()
    scan_rng, pose_rng, anatomy_rng, texture_rng, noise_rng = np.random.default_rng(seed).spawn(5)
    slice_mm, pixel_mm = scan_rng.uniform(*config.slice_spacing_mm), scan_rng.uniform(*config.pixel_spacing_mm)
    spacing_mm = (float(slice_mm), float(pixel_mm), float(pixel_mm))
    tissue = _draw_tissue(config, anatomy_rng)
    canvas = Canvas(*_coordinates(config, pose_rng, spacing_mm), background_hu=_AIR_HU)
    for part in _draw_parts(Build(anatomy_rng, config.variation), tissue):
        canvas.paint(part)
    image = canvas.hu + _texture(canvas, texture_rng)
    image = _scan(image, scan_rng.uniform(*config.noise_hu), noise_rng)
    shown = _draw_shown_slices(config, len(image), scan_rng)
    image_hu = np.clip(np.rint(image[shown]), *_CLIP_HU).astype(np.int16)
    return Torso(image_hu, canvas.labels[shown].copy(), spacing_mm)


def _draw_shown_slices(config: TorsoConfig, slices: int, rng: np.random.Generator) -> slice:
    count = max(round(slices * rng.uniform(*config.shown_part)), 1)
    first = int(rng.integers(slices - count + 1))
    return slice(first, first + count)


def _draw_tissue(config: TorsoConfig, rng: np.random.Generator) -> Tissue:
    organ = rng.uniform(95, 125)
    return Tissue(
        organ=organ,
        surround=organ - rng.uniform(*config.organ_contrast_hu),
        blood=organ + rng.uniform(*config.blood_contrast_hu),
        lung=rng.uniform(-850, -720),
        cortical=rng.uniform(450, 850),
        trabecular=rng.uniform(160, 280),
    )


def _draw_parts(build: Build, tissue: Tissue) -> list[Part]:
    """Every part of one torso, from the table under the patient to the ribs, in painting order."""
    diaphragm = draw_diaphragm(build)
    spine_line = draw_spine_line(build)
    return [
        *wall_parts(build, tissue),
        *chest_parts(build, tissue, diaphragm),
        *abdomen_parts(build, tissue, diaphragm),
        *vessel_parts(build, tissue, spine_line),
        *rib_parts(build, tissue, spine_line),
        *spine_parts(build, tissue, spine_line),
    ]


def _coordinates(config: TorsoConfig, rng: np.random.Generator, spacing_mm: Sequence[float]) -> list[np.ndarray]:
    """Anatomical x, y, z (mm, float32) of every voxel: the scanner's grid, posed, scaled and warped at random."""
    vary = config.variation
    size_mm = np.array(_FIELD_MM[::-1]) * config.body_scale
    shape = [max(round(size / step), 16) for size, step in zip(size_mm, spacing_mm, strict=True)]
    scale = config.body_scale * np.exp(vary * rng.uniform(-0.06, 0.06)) * np.exp(vary * rng.uniform(-0.04, 0.04, 3))
    turn = rotation_matrix(vary * rng.uniform(-1, 1, 3) * (4, 4, 7))
    shift = vary * rng.uniform(-1, 1, 3) * (8, 6, 12)
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing_mm, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    posed = []
    for row, factor, centre, offset in zip(turn, scale, _CENTRE_MM, shift, strict=True):
        base = (row[0] * x + row[1] * y + row[2] * z) / factor + centre + offset
        posed.append(base.astype(np.float32) + np.float32(4.0 * vary) * smooth_field(rng, shape))
    return posed


def _texture(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Uneven tissue: slow changes everywhere, bright thread-like vessels in the lungs, nothing in air."""
    shape = canvas.hu.shape
    tissue = 6 * correlated_noise(rng, shape, (2, 2, 2))
    first, second = (correlated_noise(rng, shape, (2.5, 2.5, 2.5)) for _ in range(2))
    vessels = 500 * np.exp(-(first**2 + second**2) / 0.045)
    return np.where(canvas.labels == LABELS["lungs"], vessels + tissue, np.where(canvas.hu > -200, tissue, 0))


def _scan(image_hu: np.ndarray, noise_hu: float, rng: np.random.Generator) -> np.ndarray:
    """The scanner's in-plane blur and its noise, stronger in the middle of the body where more is absorbed."""
    blurred = ndimage.gaussian_filter(image_hu, (0, 0.45, 0.45), mode="nearest")
    axes = [np.linspace(-1, 1, size, dtype=np.float32) for size in image_hu.shape[1:]]
    absorbed = 1.2 - 0.5 * np.minimum(np.hypot(axes[0][:, None], axes[1][None]), 1)
    return blurred + noise_hu * absorbed * correlated_noise(rng, image_hu.shape, (0.3, 0.7, 0.7))
