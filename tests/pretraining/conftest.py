"""A small body in HU that looks different from every side, for tests of reading and preprocessing."""

from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk


@pytest.fixture(scope="session")
def make_body() -> Callable[..., sitk.Image]:
    """Make a body as an image in SimpleITK's own axes: x to the patient's left, y to the back, z headward."""

    def make(shape=(30, 36, 44), spacing_xyz_mm=(1.0, 1.0, 1.0), seed=0) -> sitk.Image:
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, edge) for edge in shape), indexing="ij")
        hu = np.full(shape, -1000.0)
        hu[(x / 0.8) ** 2 + (y / 0.7) ** 2 < 1] = 40
        hu[((x - 0.4) / 0.25) ** 2 + (y / 0.4) ** 2 + ((z - 0.4) / 0.5) ** 2 < 1] = -800  # a lung, left and high
        hu[(x / 0.12) ** 2 + ((y - 0.5) / 0.15) ** 2 < 1] = 700  # the spine, at the back
        hu += np.random.default_rng(seed).normal(0, 20, shape)
        image = sitk.GetImageFromArray(np.rint(hu).astype(np.int16))
        image.SetSpacing(spacing_xyz_mm)
        return image

    return make
