"""nnU-Net's folder of raw datasets, and files as a download has them."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that nnUNet_raw names, which does not exist yet."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "raw"


@pytest.fixture
def save() -> Callable[[Path, np.ndarray, np.ndarray | None], Path]:
    """Writes voxels (x, y, z) and an affine to a NIfTI file; makes its folder."""

    def write(path: Path, values: np.ndarray, affine: np.ndarray | None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(values, affine), path)
        return path

    return write
