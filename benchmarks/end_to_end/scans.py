"""Scans to preprocess: DICOM series with headers as scanners write them, and the same as NIfTI."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy import ndimage

from nnunetv2_cads.demo.torsos.torso import TorsoConfig, make_torso

SLICES = 100
SPACING_MM = (3.0, 0.65, 0.65)
"""Along (z, y, x)."""
AIR_HU, NOISE_HU, INTERCEPT = -1000, 15.0, -1024
COARSE = 4
"""Pixels of a scan along an edge of a pixel of the torso that it shows."""
PRIVATE_BYTES = 6000
"""Of the elements that a manufacturer adds to each header."""


def make_body(edge: int) -> np.ndarray:
    """A torso without noise: float32 (`SLICES`, edge, edge), HU."""
    pixel_mm, slice_mm = 1.3 * 1024 / edge, 312 / SLICES
    config = TorsoConfig(
        body_scale=1.0, slice_spacing_mm=(slice_mm,) * 2, pixel_spacing_mm=(pixel_mm,) * 2, noise_hu=(0.0, 0.0)
    )
    torso = make_torso(config).image_hu
    target = (SLICES, edge // COARSE, edge // COARSE)
    padded = np.full(target, AIR_HU, np.float32)
    part = tuple(slice(min(size, kept)) for size, kept in zip(torso.shape, target, strict=True))
    padded[part] = torso[part]
    return ndimage.zoom(padded, (1, COARSE, COARSE), order=1)


def with_noise(body: np.ndarray, seed: int) -> np.ndarray:
    """One scan of it: int16, HU."""
    noise = np.random.default_rng(seed).standard_normal(body.shape, np.float32)
    return np.clip(np.rint(body + NOISE_HU * noise), INTERCEPT, 3071).astype(np.int16)


def write_nifti(path: Path, volume_hu: np.ndarray) -> None:
    """One packed file, as converters write it; with its last name only when it is whole."""
    image = sitk.GetImageFromArray(volume_hu)
    image.SetSpacing(SPACING_MM[::-1])
    temporary = path.with_name(f"writing_{path.name}")
    sitk.WriteImage(image, temporary)
    temporary.rename(path)


def write_series(folder: Path, volume_hu: np.ndarray) -> None:
    """One file for each slice; in a folder that has its name only when it is whole."""
    temporary = folder.with_name(f"writing_{folder.name}")
    temporary.mkdir(parents=True, exist_ok=True)
    uids = [generate_uid() for _ in range(3)]
    for index, plane in enumerate(volume_hu):
        header = _header(index, plane.shape, uids)
        header.PixelData = (plane - INTERCEPT).astype(np.int16).tobytes()
        header.save_as(temporary / f"IM{index:05d}.dcm", enforce_file_format=True)
    temporary.rename(folder)


def _header(index: int, shape: Sequence[int], uids: Sequence[str]) -> Dataset:
    """About what a scanner states of a slice, with a manufacturer's private elements."""
    header = Dataset()
    time = f"1010{index % 60:02d}.500000"
    values = {
        "SpecificCharacterSet": "ISO_IR 100", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": generate_uid(),
        **dict.fromkeys(("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"), "20260105"),
        **dict.fromkeys(("StudyTime", "SeriesTime"), "101000"), "AcquisitionTime": time, "ContentTime": time,
        "AccessionNumber": "1", "Modality": "CT", "Manufacturer": "None", "InstitutionName": "None",
        "StudyDescription": "Thorax", "SeriesDescription": "Thorax 3.0 soft", "ManufacturerModelName": "None",
        "PatientName": "None", "PatientID": "1", "PatientSex": "O", "PatientAge": "060Y", "BodyPartExamined": "CHEST",
        "SliceThickness": SPACING_MM[0], "KVP": 120, "DataCollectionDiameter": 500, "SoftwareVersions": "1",
        "ProtocolName": "Thorax", "ReconstructionDiameter": 333, "DistanceSourceToDetector": 1040,
        "DistanceSourceToPatient": 570, "GantryDetectorTilt": 0, "TableHeight": 150, "RotationDirection": "CW",
        "ExposureTime": 500, "XRayTubeCurrent": 200, "Exposure": 100, "FilterType": "0", "GeneratorPower": 30,
        "FocalSpots": [0.7, 0.7], "ConvolutionKernel": "soft", "PatientPosition": "HFS",
        "StudyInstanceUID": uids[0], "SeriesInstanceUID": uids[1], "FrameOfReferenceUID": uids[2], "StudyID": "1",
        "SeriesNumber": 2, "AcquisitionNumber": 1, "InstanceNumber": index + 1,
        "ImagePositionPatient": [0, 0, SPACING_MM[0] * index], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SliceLocation": SPACING_MM[0] * index, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "Rows": shape[0], "Columns": shape[1], "PixelSpacing": list(SPACING_MM[1:]), "BitsAllocated": 16,
        "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1, "WindowCenter": [40, -600],
        "WindowWidth": [400, 1200], "RescaleIntercept": INTERCEPT, "RescaleSlope": 1, "RescaleType": "HU",
    }  # fmt: skip
    for keyword, value in values.items():
        setattr(header, keyword, value)
    header.private_block(0x0029, "NONE", create=True).add_new(0x10, "OB", bytes(PRIVATE_BYTES))
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return header
