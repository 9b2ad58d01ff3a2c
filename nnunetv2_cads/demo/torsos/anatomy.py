"""One random patient: how the tissues look, how sizes vary, and the surfaces that several organs share.

The frame is that of an adult lying on the back: x to the patient's left, y to the back, z headward, in mm, with the
origin in the body's middle at the height of the diaphragm. Sizes are an adult's; `torso.py` scales.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nnunetv2_cads.demo.torsos.shapes import ellipsoid, oval, profile, smooth_union, wobbly

LABELS = {
    "background": 0,
    "lungs": 1,
    "liver": 2,
    "spleen": 3,
    "kidney_right": 4,
    "kidney_left": 5,
    "spine": 6,
    "ribs": 7,
    "aorta": 8,
}

# The body's and the cavity's half axes (mm) along z (mm); the cavity closes above the apex of the lungs.
_BODY_Z = (-170, -60, 40, 120, 200)
_BODY_WIDTH = (150, 148, 160, 165, 158)
_BODY_DEPTH = (100, 106, 112, 106, 94)
_CAVITY_Z = (-170, -60, 0, 60, 120, 160, 180, 192)
_CAVITY_WIDTH = (120, 124, 130, 128, 108, 78, 50, 20)
_CAVITY_DEPTH = (70, 76, 80, 80, 72, 54, 38, 15)
_CAVITY_Y = (-8, -8, -8, -6, -2, 6, 12, 14)


@dataclass(frozen=True)
class Tissue:
    """HU of one patient's tissues; ``organ`` is shared by liver, spleen, kidneys, bowel wall and stomach."""

    organ: float
    surround: float
    blood: float
    lung: float
    cortical: float
    trabecular: float


@dataclass(frozen=True)
class Build:
    """One patient's variation: ``vary(mean, relative sd)`` draws sizes, ``shift(sd)`` an offset of three mm values."""

    rng: np.random.Generator
    variation: float

    def vary(self, mean: float, relative: float = 0.1) -> float:
        """A size around ``mean``, log-normal, never more than 2.5 standard deviations off."""
        return mean * float(np.exp(self.variation * relative * np.clip(self.rng.normal(), -2.5, 2.5)))

    def shift(self, sd_mm: float, size: int = 3) -> np.ndarray:
        """Normal offsets (mm or degrees), never more than 2.5 standard deviations off."""
        return self.variation * sd_mm * np.clip(self.rng.normal(size=size), -2.5, 2.5)

    def blob(self, centre, radii, degrees=(0, 0, 0), wobble: float = 0.1, shift_mm: float = 5.0):
        """A random, wobbly ellipsoid and its box: (shape, centre, half sizes)."""
        centre = tuple(np.asarray(centre, dtype=float) + self.shift(shift_mm))
        radii = tuple(self.vary(radius) for radius in radii)
        degrees = np.asarray(degrees, dtype=float) + self.shift(7.0)
        shape = wobbly(ellipsoid(centre, radii, degrees), self.rng, self.variation * wobble * min(radii))
        return shape, centre, (max(radii),) * 3


def body(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half width and half depth (mm) of the body at the heights ``z``."""
    return profile(z, _BODY_Z, _BODY_WIDTH), profile(z, _BODY_Z, _BODY_DEPTH)


def cavity(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The inside of the chest wall and of the abdominal wall."""
    centre = profile(z, _CAVITY_Z, _CAVITY_Y)
    wall = oval(x, y - centre, profile(z, _CAVITY_Z, _CAVITY_WIDTH), profile(z, _CAVITY_Z, _CAVITY_DEPTH))
    return np.maximum(wall, z - _CAVITY_Z[-1])


def draw_diaphragm(build: Build) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Height (mm) of the diaphragm over (x, y): a higher right dome and a lower left one."""
    right, left = 22 + float(build.shift(6, 1)[0]), 8 + float(build.shift(6, 1)[0])

    def height(x, y):
        domes = [
            top - 58 * (((x - centre) / 85) ** 2 + ((y + 25) / 80) ** 2) for top, centre in ((right, -62), (left, 64))
        ]
        return -smooth_union(-domes[0], -domes[1], 20)

    return height


def draw_spine_line(build: Build) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Centre (x, y) in mm of the vertebral bodies over the height z: kyphosis of the chest, lordosis of the loin."""
    side, curve = float(build.shift(4, 1)[0]), build.vary(9, 0.3)
    phase = build.rng.uniform(0, 2 * np.pi)

    def line(z):
        return side * np.sin(z / 110 + phase), 44 + curve * np.sin(np.pi * z / 210)

    return line
