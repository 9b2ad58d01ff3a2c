"""The script that a user would write in place of `cads_preprocess`: SimpleITK, and ITK's ray caster.

    python -m end_to_end.plain INPUT OUTPUT

INPUT holds NIfTI files, or a folder for each DICOM series. Every scan is read, turned to the canonical axes, resampled
to 1 mm with cubic B-splines (`sitkBSpline`, which gives the numbers that ours does), and saved as a packed NIfTI with
its frontal radiograph. ITK casts the rays, as in benchmarks/preprocess.py, where it is installed (the extra
``benchmarks``); else the radiograph is the mean along parallel rays, which takes almost no time.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunetv2_cads.encoder_file.record import CLIP_HU

HAS_RAYS = find_spec("itk") is not None
if HAS_RAYS:
    from preprocess import radiograph_plain


def read(path: Path) -> sitk.Image:
    """HU, float32, z headward, y to the back, x to the patient's left."""
    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        image = sitk.Cast(reader.Execute(), sitk.sitkFloat32)
    else:
        image = sitk.ReadImage(path, sitk.sitkFloat32)
    return sitk.DICOMOrient(image, "LPS")


def resample(image: sitk.Image) -> sitk.Image:
    """Cubic voxels of 1 mm about the same centre."""
    size = [round(edge * mm) for edge, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    middle = [(edge - 1) / 2 for edge in image.GetSize()]
    turn = np.array(image.GetDirection()).reshape(3, 3)
    first = image.TransformContinuousIndexToPhysicalPoint(middle) - turn @ [(edge - 1) / 2 for edge in size]
    return sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkBSpline, first.tolist(), (1.0, 1.0, 1.0), image.GetDirection(),
        float(CLIP_HU[0]), sitk.sitkFloat32,
    )  # fmt: skip


def radiograph(volume_hu: np.ndarray) -> np.ndarray:
    """Frontal, (slices, width) in [-1, 1], head up."""
    if HAS_RAYS:
        return radiograph_plain(volume_hu)
    picture = volume_hu.mean(axis=1, dtype=np.float32)
    low, high = picture.min(), picture.max()
    return np.flipud(2 * (picture - low) / (high - low) - 1)


def main(source: Path, output: Path) -> None:
    """Preprocess every scan of a folder."""
    output.mkdir()
    for path in sorted(source.iterdir()):
        name = path.name.removesuffix(".nii.gz")
        image = resample(sitk.Clamp(read(path), lowerBound=CLIP_HU[0], upperBound=CLIP_HU[1]))
        volume_hu = np.rint(np.clip(sitk.GetArrayFromImage(image), *CLIP_HU)).astype(np.int16)
        np.save(output / f"{name}.npy", radiograph(volume_hu))
        result = sitk.GetImageFromArray(volume_hu)
        result.CopyInformation(image)
        sitk.WriteImage(result, output / f"{name}.nii.gz")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
