"""What a large archive costs `cads_preprocess`: CPU seconds and memory of each step, for archives of several sizes.

    python benchmarks/archive.py [--scans 1000 4000 16000] [--quick] [--work FOLDER]

The archive is simulated: real names, headers and formats, with 8 x 8 x 8 voxels or four slices of 8 x 8, so that what
is measured is what a scan costs however small it is. Of four scans, three are NIfTI files, all in one folder, and one
is a DICOM series in a folder of its own. The archive grows from one size to the next, and so does its store, by the
command itself with one worker. Each step is then measured in a process of its own:

    search   find every scan
    plan     read what the store holds, and plan one of 16 parts
    resume   the command itself on a finished store, where nothing is to be done
    merge    complete the store from its entries, as the part that ends last does
    open     open the store for training, and list its sub-volumes

Seconds are those of the processor, so that other work on the machine and a slow disk change them little. Memory is the
peak above what the process held before the step; of adding, the peak of the command's largest process. The last line
is a JSON object: for each step its figures at each size, and the exponents with which its seconds and its memory grow
from the smallest size to the largest (1 is linear, and fixed costs make it less). 100,000 scans need 3 GB of disk.
"""

import argparse
import gzip
import io
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from tables import in_new_process, markdown_table, print_json

from pretraining.config import PretrainConfig
from pretraining.ct.find_scans import find_scans
from pretraining.preprocess import preprocess
from pretraining.store.contact_sheet import write_contact_sheets
from pretraining.store.duplicates import without_duplicates
from pretraining.store.store import Store
from pretraining.store.work_plan import Part, make_plan
from pretraining.store.writer import StoreWriter
from pretraining.system.machine import peak_memory, reset_peak_memory, resident_memory
from pretraining.views.subvolumes import SubVolumes

SIZES, QUICK_SIZES = (1000, 4000, 16_000), (250, 500, 1000)
EDGE, VOXEL_MM = 8, 3.5
SLICES, SLICE_MM = 4, 8.0
PARTS = 16
CPU = torch.device("cpu")
STEPS = ("search", "plan", "resume", "merge", "open")


def voxels_hu(number: int, slices: int) -> np.ndarray:
    """Tissue in air, (slices, EDGE, EDGE), int16; no two scans have the same."""
    hu = np.random.default_rng(number).integers(-60, 120, (slices, EDGE, EDGE), dtype=np.int16)
    hu[:, :2] = -1000
    return hu


class Archive:
    """Scans in a folder, each written in a fraction of a millisecond: headers are made once, and differ in numbers.

    Args:
        folder: of the archive.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "nifti").mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(np.zeros((EDGE,) * 3, np.int16), np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0]))
        self._nifti = image.to_bytes()[: -2 * EDGE**3]
        self._dicom = _slice_bytes(_numbers(0, 0))

    def write(self, number: int) -> None:
        """Write one scan: of four, three as NIfTI and one as DICOM."""
        name = f"{2009 + number % 15}_PAT{number:07d}_CT_thorax_abdomen"
        if number % 4:
            content = self._nifti + voxels_hu(number, EDGE).tobytes()
            (self.folder / "nifti" / f"{name}.nii.gz").write_bytes(gzip.compress(content, 1))
            return
        series = self.folder / "dicom" / f"site_{number % 7}" / name / "CT_series_2"
        series.mkdir(parents=True, exist_ok=True)
        for index, plane in enumerate(voxels_hu(number, SLICES) + 1024):
            content = self._dicom
            for old, new in zip(_numbers(0, 0), _numbers(number, index), strict=True):
                content = content.replace(old.encode(), new.encode())
            pixels = plane.astype("<u2").tobytes()
            (series / f"IM-0001-{index:04d}.dcm").write_bytes(content[: -len(pixels)] + pixels)


def _numbers(number: int, index: int) -> tuple[str, ...]:
    """What differs between slices, each of one length: the patient, identifiers of its study, series and slice, z."""
    uids = (f"1.2.826.0.1.3680043.8.498.{kind}{number:08d}" for kind in (1, 2, 3))
    return (
        f"PAT{number:07d}",
        *uids,
        f"1.2.826.0.1.3680043.8.499.1{number:08d}{index + 1000}",
        f"{index * SLICE_MM:010.4f}",
    )


def _slice_bytes(numbers: tuple[str, ...]) -> bytes:
    """A DICOM file of one slice, with the elements that scanners write."""
    patient, study, series, frame, slice_uid, z_mm = numbers
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, slice_uid
    dataset.PatientID = dataset.PatientName = patient
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
    dataset.Modality, dataset.Manufacturer, dataset.SeriesDescription = "CT", "SIMULATED", "Thorax Abdomen 8.0 B30f"
    dataset.StudyDate = dataset.SeriesDate = "20190412"
    dataset.StudyTime = dataset.SeriesTime = "101530.250000"
    dataset.ImageType, dataset.KVP, dataset.ConvolutionKernel = ["ORIGINAL", "PRIMARY", "AXIAL"], 120, "B30f"
    dataset.SeriesNumber, dataset.AcquisitionNumber, dataset.SliceThickness = 2, 1, SLICE_MM
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, z_mm], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.RescaleSlope, dataset.RescaleIntercept = [VOXEL_MM, VOXEL_MM], 1, -1024
    dataset.Rows = dataset.Columns = EDGE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelData = bytes(2 * EDGE**2)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = CTImageStorage, slice_uid
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def grow(archive: Archive, store: Path, before: int, after: int) -> dict[str, float]:
    """Add the scans from ``before`` to ``after`` to an archive and its store; what the latter costs.

    The store's folder is searched and completed as well, so of a small addition these are a part.
    """
    for number in range(before, after):
        archive.write(number)
    return in_new_process(add, archive.folder, store).result() | {"scans": after - before}


def add(folder: Path, store: Path) -> dict[str, float]:
    """Run the command, with one worker; the memory is that of its largest process."""
    command = "import sys; from pretraining.preprocess import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", command, folder, store, "-np", "1"], check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": used.ru_utime + used.ru_stime, "bytes": 1024 * used.ru_maxrss}


def step_cost(step: str, folder: Path, store: Path) -> dict[str, float]:
    """Seconds and bytes of one step."""
    writer = StoreWriter(store)
    scans = find_scans(folder, store)[0] if step == "plan" else []

    def plan() -> object:
        stored = {volume_id: entry["source"]["path"] for volume_id, entry in writer.finished().items()}
        return make_plan(scans, {}, Part(0, PARTS), stored)

    def merge() -> object:
        entries, _ = without_duplicates(writer.finished(), {})
        manifest = writer.write_manifest(True, entries)
        for page in store.glob("*.png"):
            page.unlink()  # so that all are drawn
        return write_contact_sheets(Store(store, manifest), manifest["volumes"])

    steps = {
        "search": lambda: find_scans(folder, store),
        "plan": plan,
        "resume": lambda: preprocess(folder, store, 1, Part()),
        "merge": merge,
        "open": lambda: SubVolumes(Store.open(store), PretrainConfig().view),
    }
    reset_peak_memory(CPU)
    before, start = resident_memory(), time.process_time()
    kept = steps[step]()
    seconds = time.process_time() - start
    del kept
    return {"seconds": seconds, "bytes": peak_memory(CPU) - before}


def exponent(costs: dict[int, dict[str, float]], key: str) -> float:
    """Of the growth from the smallest size to the largest."""
    small, large = min(costs), max(costs)
    return round(math.log(costs[large][key] / costs[small][key]) / math.log(large / small), 2)


def main() -> None:
    """Grow the archive, measure each step at each size, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, nargs="+", help=f"sizes of the archive (default: {SIZES})")
    parser.add_argument("--quick", action="store_true", help=f"the sizes {QUICK_SIZES}")
    parser.add_argument("--work", type=Path, help="where to put archive and store (default: a temporary folder)")
    arguments = parser.parse_args()
    sizes = sorted(arguments.scans or (QUICK_SIZES if arguments.quick else SIZES))
    costs: dict[str, dict[int, dict[str, float]]] = {step: {} for step in ("add", *STEPS)}
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        archive, store = Archive(Path(work) / "archive"), Path(work) / "store"
        for before, size in zip([0, *sizes], sizes, strict=False):
            costs["add"][size] = grow(archive, store, before, size)
            for step in STEPS:
                costs[step][size] = in_new_process(step_cost, step, archive.folder, store).result() | {"scans": size}
            print_table({step: cost[size] for step, cost in costs.items()}, size)
    growth = {
        step: {"seconds": exponent(cost, "seconds"), "bytes": exponent(cost, "bytes")}
        for step, cost in costs.items()
        if step != "add" and len(sizes) > 1
    }
    print_json({"growth": growth, "costs": costs})


def print_table(costs: dict[str, dict[str, float]], size: int) -> None:
    """One size's figures."""
    rows = [
        [step, f"{cost['seconds']:.2f}", f"{1000 * cost['seconds'] / cost['scans']:.2f}", f"{cost['bytes'] / 1e6:.1f}"]
        for step, cost in costs.items()
    ]
    print(f"\n{size} scans\n{markdown_table(['step', 's', 's per 1,000 scans', 'peak, MB'], rows)}", flush=True)


if __name__ == "__main__":
    main()
