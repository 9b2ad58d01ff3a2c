"""Implicit shapes in millimetres: negative inside, positive outside, zero on the surface.

Every shape is a function of three float arrays ``(x, y, z)`` of one shape that returns an array of that shape.
The values are close to distances in mm near the surface, which is all that `nnunetv2_cads.demo.torsos.canvas` needs.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

Implicit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def rotation_matrix(degrees: Sequence[float]) -> np.ndarray:
    """Rotation by the angles about x, then y, then z (degrees), as a 3 x 3 matrix that acts on (x, y, z)."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def ellipsoid(centre: Sequence[float], radii: Sequence[float], degrees: Sequence[float] = (0, 0, 0)) -> Implicit:
    """Ellipsoid with its centre and radii in mm, rotated by `rotation_matrix` of ``degrees``."""
    matrix = (rotation_matrix(degrees).T / np.asarray(radii, dtype=float)[:, None]).astype(np.float32)
    scale = float(np.min(radii))

    def implicit(x, y, z):
        p = (x - centre[0], y - centre[1], z - centre[2])
        unit = [row[0] * p[0] + row[1] * p[1] + row[2] * p[2] for row in matrix]
        return (np.sqrt(unit[0] ** 2 + unit[1] ** 2 + unit[2] ** 2) - 1) * scale

    return implicit


def tube(points: Sequence[Sequence[float]], radius: float) -> Implicit:
    """Tube of one radius (mm) around the polyline through ``points``, with round ends."""
    points = np.asarray(points, dtype=np.float32)

    def implicit(x, y, z):
        nearest = np.full(x.shape, np.inf, dtype=np.float32)
        for start, end in itertools.pairwise(points):
            p, along = (x - start[0], y - start[1], z - start[2]), end - start
            t = np.clip((p[0] * along[0] + p[1] * along[1] + p[2] * along[2]) / (along @ along), 0, 1)
            squared = sum((p[i] - t * along[i]) ** 2 for i in range(3))
            np.minimum(nearest, squared, out=nearest)
        return np.sqrt(nearest) - radius

    return implicit


def profile(positions: np.ndarray, knots: Sequence[float], values: Sequence[float]) -> np.ndarray:
    """Piecewise linear values between ``knots``, constant outside, in float32 (numpy's own would double the work)."""
    return np.interp(positions, knots, values).astype(np.float32)


def oval(x: np.ndarray, y: np.ndarray, half_width, half_depth, exponent: float = 2.4) -> np.ndarray:
    """Distance (mm, measured along the ray from the origin) to a superellipse; half axes may vary by voxel."""
    unit = (np.abs(x / half_width) ** exponent + np.abs(y / half_depth) ** exponent) ** (1 / exponent)
    return np.hypot(x, y) * (1 - 1 / np.maximum(unit, 1e-3))


def smooth_union(first: np.ndarray, second: np.ndarray, width_mm: float) -> np.ndarray:
    """Union of two shapes' values with a fillet of about ``width_mm`` where they meet (polynomial smooth minimum)."""
    blend = np.clip(0.5 + 0.5 * (second - first) / width_mm, 0, 1)
    return second + (first - second) * blend - width_mm * blend * (1 - blend)


def grown(shape: Implicit, by_mm: float) -> Implicit:
    """The shape grown outward by ``by_mm`` (inward where negative)."""
    return lambda x, y, z: shape(x, y, z) - by_mm


def intersection(*shapes: Implicit) -> Implicit:
    """What all shapes share."""
    return lambda x, y, z: np.maximum.reduce([shape(x, y, z) for shape in shapes])


def wobbly(shape: Implicit, rng: np.random.Generator, amplitude_mm: float, wavelength_mm: float = 70.0) -> Implicit:
    """The shape with a smooth random surface: three plane waves of random direction and phase are added to it."""
    directions = rng.normal(size=(3, 3))
    directions *= 2 * np.pi / wavelength_mm / np.linalg.norm(directions, axis=1, keepdims=True)
    phases = rng.uniform(0, 2 * np.pi, 3)

    def implicit(x, y, z):
        waves = [
            np.sin(k[0] * x + k[1] * y + k[2] * z + phase)
            for k, phase in zip(directions.astype(np.float32), phases.astype(np.float32), strict=True)
        ]
        return shape(x, y, z) + np.float32(amplitude_mm / 1.5) * (waves[0] + waves[1] + waves[2])

    return implicit
