"""Seconds per scan from file to store: ours against skimage's resampling and ITK's ray caster, alternating in one run.

    pip install -e ".[benchmarks]"
    python benchmarks/preprocess.py [SCAN ...] [--rounds 5] [--quick]

The plain side is what one would write from the method's description: SimpleITK reads and reorients, skimage resizes
with cubic splines, ITK casts the rays; it writes the same store with the same compression. Both sides run on one
thread; the figures are CPU seconds, medians over the rounds. Without SCAN: synthetic torsos. One line says how long a
folder of DICOM slices is searched. The last line is a JSON object of the smallest ratio over the scans, plain / ours.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import itk
import numpy as np
import SimpleITK as sitk
from skimage.transform import resize

from nnunetv2_cads.demo.torsos.torso import TorsoConfig, make_torso
from pretraining.ct.find_scans import find_scans
from pretraining.ct.geometry import resample_cubic, resampled_shape
from pretraining.ct.radiograph import FOCAL_DISTANCE_MM, frontal_radiograph
from pretraining.ct.scan import Scan
from pretraining.store.add_scan import preprocess_scan
from pretraining.store.store import Store
from pretraining.store.writer import Source, StoreWriter
from pretraining.system.worker_pool import THREAD_VARIABLES

STEPS = ("scan to store", "resampling", "radiograph")


def read_plain(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """HU (z, y, x), float32, z headward, y to the back, x to the patient's left; and the voxel edges in mm."""
    image = sitk.DICOMOrient(sitk.ReadImage(path, sitk.sitkFloat32), "LPS")
    return sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]


def resample_plain(volume: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Cubic voxels of 1 mm by skimage."""
    shape = resampled_shape(volume.shape, spacing_mm)
    return resize(volume, shape, order=3, mode="reflect", preserve_range=True, anti_aliasing=False)


def radiograph_plain(volume_hu: np.ndarray) -> np.ndarray:
    """ITK's ray caster with the geometry of `pretraining.ct.radiograph`: (slices, width) in [-1, 1]."""
    slices, height, width = volume_hu.shape
    image = itk.image_from_array(volume_hu.astype(np.float32) + 1024)
    kind = type(image)
    caster = itk.RayCastInterpolateImageFunction[kind, itk.D].New()
    caster.SetTransform(itk.TranslationTransform[itk.D, 3].New())
    caster.SetThreshold(0)
    caster.SetFocalPoint(((width - 1) / 2, (height - 1) / 2 - FOCAL_DISTANCE_MM, (slices - 1) / 2))
    detector = itk.ResampleImageFilter[kind, kind].New(Input=image, Interpolator=caster)
    detector.SetSize((width, 1, slices))
    detector.SetOutputOrigin((0, (height - 1) / 2 + slices, 0))
    detector.Update()
    picture = itk.array_from_image(detector.GetOutput())[:, 0]
    low, high = picture.min(), picture.max()
    return np.flipud(2 * (picture - low) / (high - low) - 1)


def preprocess_plain(path: Path, writer: StoreWriter) -> None:
    """The whole job."""
    volume, spacing_mm = read_plain(path)
    volume_hu = np.rint(np.clip(resample_plain(volume, spacing_mm), -1024, 1024)).astype(np.int16)
    source = Source(path.name, path.stat().st_size, 0, "", volume.shape[::-1], spacing_mm[::-1])
    writer.add("plain", volume_hu, radiograph_plain(volume_hu), source)


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(path: Path, folder: Path, rounds: int) -> tuple[dict[str, list[float]], Store]:
    """Medians of (plain, ours) for each of `STEPS`, and the store with both results."""
    writer = StoreWriter(folder)
    writer.prepare()
    scan = Scan("ours", path.name, (path,))
    preprocess_plain(path, writer)
    preprocess_scan(scan, writer)
    store = Store(folder, writer.write_manifest(complete=True))
    volume, spacing_mm = read_plain(path)
    volume_hu = store.volume("ours")[:]
    sides = {
        "scan to store": (lambda: preprocess_plain(path, writer), lambda: preprocess_scan(scan, writer)),
        "resampling": (lambda: resample_plain(volume, spacing_mm), lambda: resample_cubic(volume, spacing_mm)),
        "radiograph": (lambda: radiograph_plain(volume_hu), lambda: frontal_radiograph(volume_hu)),
    }
    seconds = {step: [[], []] for step in STEPS}
    for _ in range(rounds):
        for step, pair in sides.items():
            for side, work in enumerate(pair):
                seconds[step][side].append(cpu_seconds(work))
    return {step: [statistics.median(side) for side in pair] for step, pair in seconds.items()}, store


def make_torsos(folder: Path, count: int) -> list[Path]:
    """Synthetic scans with the voxels of a usual CT."""
    config = TorsoConfig(body_scale=0.8, slice_spacing_mm=(2.0, 2.5), pixel_spacing_mm=(1.2, 1.4))
    paths = []
    for seed in range(count):
        torso = make_torso(config, seed)
        image = sitk.GetImageFromArray(torso.image_hu)
        image.SetSpacing(torso.spacing_mm[::-1])
        paths.append(folder / f"torso_{seed}.nii.gz")
        sitk.WriteImage(image, paths[-1])
    return paths


def search_seconds(folder: Path, count: int) -> float:
    """CPU time of searching a folder of DICOM slices, of 500 per series, with short headers."""
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    piece = sitk.Image(64, 64, 1, sitk.sitkInt16)
    for index in range(count):
        series, place = divmod(index, 500)
        header = {"0020|000e": f"1.2.{series + 1}", "0020|0032": f"0\\0\\{place}", "0020|0037": "1\\0\\0\\0\\1\\0"}
        for tag, value in ({"0008|0060": "CT", "0020|000d": "1.2"} | header).items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(folder / f"{index:05d}")
        writer.Execute(piece)
    return cpu_seconds(lambda: find_scans(folder, folder / "store"))


def main() -> None:
    """Run both sides on every scan."""
    if any(os.environ.get(name) != "1" for name in THREAD_VARIABLES):  # the libraries read them once, when they load
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | dict.fromkeys(THREAD_VARIABLES, "1"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="*", type=Path, metavar="SCAN")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the first scan only")
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        scans = arguments.scans or make_torsos(Path(folder), 1 if arguments.quick else 2)
        print("one thread, CPU seconds, plain / ours (ratio)")
        print(f"| scan | {' | '.join(STEPS)} | largest HU difference | radiographs' correlation |\n|{'---|' * 6}")
        for path in scans[:1] if arguments.quick else scans:
            medians, store = measure(path, Path(folder) / f"store_{len(ratios)}", arguments.rounds)
            times = [f"{plain:.2f} / {ours:.2f} ({plain / ours:.1f})" for plain, ours in medians.values()]
            difference = np.abs(store.volume("ours")[:].astype(int) - store.volume("plain")[:]).max()
            correlation = np.corrcoef(store.radiograph("ours").ravel(), store.radiograph("plain").ravel())[0, 1]
            print(f"| {path.name} | {' | '.join(times)} | {difference} | {correlation:.4f} |")
            ratios.append(medians["scan to store"][0] / medians["scan to store"][1])
        count = 1000 if arguments.quick else 10_000
        print(f"{count} DICOM slices searched in {search_seconds(Path(folder) / 'slices', count):.1f} s")
    print(json.dumps({"preprocess": round(min(ratios), 1)}))


if __name__ == "__main__":
    main()
