"""DICOM files as tests need them, written by pydicom: any header, and stored values of any kind."""

from pathlib import Path

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
SERIES_UID = "1.2.3.4"


def item(**values) -> Dataset:
    """A data set of keywords and values; an element of a type of its own goes in as it is."""
    result = Dataset()
    for keyword, value in values.items():
        if isinstance(value, DataElement):
            result.add(value)
        else:
            setattr(result, keyword, value)
    return result


def plain_header(stored: np.ndarray, sop_class: str = CT, **header) -> Dataset:
    """A header and the stored values (..., rows, columns), without geometry; intercept -1024 unless given."""
    uid = generate_uid()
    bits = 8 * stored.itemsize
    values = {
        "SOPClassUID": sop_class, "SOPInstanceUID": uid, "Modality": "CT", "PatientID": "1", "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": SERIES_UID, "FrameOfReferenceUID": "1.2.9", "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2", "Rows": stored.shape[-2], "Columns": stored.shape[-1],
        "BitsAllocated": bits, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
    }  # fmt: skip
    dataset = item(**(values | header))
    dataset.PixelData = stored.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def slice_header(stored: np.ndarray, z_mm: float, **header) -> Dataset:
    """One axial slice of CT, (rows, columns)."""
    values = {
        "ImagePositionPatient": [0, 0, z_mm], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1],
        "RescaleSlope": 1, "RescaleIntercept": -1024,
    }  # fmt: skip
    return plain_header(stored, **(values | header))


def write_slices(folder: Path, stored: np.ndarray, places_mm, prefix="", each=lambda index: {}, **header) -> None:
    """A file for each slice of (slices, rows, columns); ``each`` gives what the header of one slice has beside."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (plane, z_mm) in enumerate(zip(stored, places_mm, strict=True)):
        dataset = slice_header(plane, z_mm, **(header | each(index)))
        dataset.save_as(folder / f"{prefix}{index:03d}.dcm", enforce_file_format=True)


def enhanced_header(stored: np.ndarray, places_mm, each=lambda index: {}, **header) -> Dataset:
    """An Enhanced CT of (frames, rows, columns); ``each`` gives functional groups of one frame, by their keywords."""
    dataset = plain_header(stored, ENHANCED_CT, NumberOfFrames=len(stored), **header)
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelMeasuresSequence=[item(PixelSpacing=[1, 1])],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(**({"PlanePositionSequence": [item(ImagePositionPatient=[0, 0, z_mm])]} | each(index)))
        for index, z_mm in enumerate(places_mm)
    ]
    return dataset
