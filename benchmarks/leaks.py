"""How surely the leak check recognises a scan that was changed, and how often it takes two patients for one.

    python benchmarks/leaks.py FOLDER [FOLDER ...] [--changed 40] [--pairs 20000]

FOLDER: CT scans (NIfTI), each of another patient. Every scan is read as a store has it. Recognition: scans are cropped,
resampled, clipped, made noisy, shifted and stored along other axes, written to a file, read again, and compared with
their own volume; each change for ``--changed`` scans, all changes together for every scan. False alarms: every volume
against every other, and every scan with all changes, and with a crop alone, against every volume of another patient.
Then, in CPU seconds of one thread, what a volume and a pair take. The last line is a JSON object of the shares.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tables import markdown_table, print_json

from nnunetv2_cads.demo.torsos.datasets import orientations
from pretraining.ct.scan import Scan, UnusableScanError
from pretraining.store.add_scan import read_volume
from pretraining.store.recognition import LEAST_BODY_ML, PERHAPS, SAME_SCAN, Pattern, correlation, pattern_of
from pretraining.system.worker_pool import THREAD_VARIABLES

SPACING_MM = 2.0
"""Of the store."""
SEED = 0
Change = Callable[[sitk.Image, np.random.Generator], sitk.Image]


def crop(image: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """Half of each edge, about the middle."""
    size = [edge // 2 for edge in image.GetSize()]
    start = [int(rng.integers(edge // 6, edge // 3 + 1)) for edge in image.GetSize()]
    return sitk.RegionOfInterest(image, size, start)


def resample(image: sitk.Image, _: np.random.Generator) -> sitk.Image:
    """Linear, to 3 x 3 x 5 mm."""
    spacing = (3.0, 3.0, 5.0)
    size = [int(edge * old / new) for edge, old, new in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
    return _resampled(image, size, spacing, image.GetOrigin())


def clip(image: sitk.Image, _: np.random.Generator) -> sitk.Image:
    """To the window that many datasets are stored in."""
    return sitk.Clamp(image, lowerBound=-160, upperBound=240)


def add_noise(image: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """20 HU in every voxel."""
    noise = sitk.GetImageFromArray(rng.normal(0, 20, image.GetSize()[::-1]).astype(np.float32))
    noise.CopyInformation(image)
    return image + noise


def shift(image: sitk.Image, _: np.random.Generator) -> sitk.Image:
    """By half a voxel along each axis."""
    origin = image.TransformContinuousIndexToPhysicalPoint((0.5, 0.5, 0.5))
    return _resampled(image, [edge - 1 for edge in image.GetSize()], image.GetSpacing(), origin)


def reorient(image: sitk.Image, rng: np.random.Generator) -> sitk.Image:
    """Stored along other axes."""
    return sitk.DICOMOrient(image, str(rng.choice(orientations())))


CHANGES: dict[str, tuple[Change, ...]] = {
    "cropped to half of each edge": (crop,),
    "resampled to 3 x 3 x 5 mm": (resample,),
    "clipped to [-160, 240]": (clip,),
    "noise of 20 HU": (add_noise,),
    "shifted by half a voxel": (shift,),
    "stored along other axes": (reorient,),
    "all of these": (crop, shift, resample, add_noise, clip, reorient),
}
CROPPED, ALL = "cropped to half of each edge", "all of these"


def _resampled(image: sitk.Image, size: list[int], spacing: Iterable[float], origin: Iterable[float]) -> sitk.Image:
    return sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, origin, tuple(spacing), image.GetDirection(), -1000.0
    )


def read_pattern(path: Path) -> Pattern:
    """The pattern of a file, read as a store would have it."""
    volume_hu, *_ = read_volume(Scan(path.name, path.name, (path,)), SPACING_MM, may_be_clipped=True)
    return pattern_of(volume_hu, SPACING_MM)


def read_changed(path: Path, changes: tuple[Change, ...], seed: int, folder: Path) -> Pattern | None:
    """The pattern of a changed scan; None where too little of it is left for any store."""
    image, rng = sitk.ReadImage(str(path), sitk.sitkFloat32), np.random.default_rng(seed)
    for change in changes:
        image = change(image, rng)
    file = folder / "changed.nii.gz"
    sitk.WriteImage(sitk.Cast(sitk.Round(image), sitk.sitkInt16), str(file))
    try:
        pattern = read_pattern(file)
    except UnusableScanError:
        return None
    return pattern if pattern.body_ml >= LEAST_BODY_ML else None


def shares(correlations: list[float]) -> list[str]:
    """Cells of a table: how many, of these the same scan and undecided, and what correlations there are."""
    same = sum(value >= SAME_SCAN for value in correlations)
    perhaps = sum(PERHAPS <= value < SAME_SCAN for value in correlations)
    compared = sorted(correlations)
    return [
        f"{len(compared)}",
        f"{same} ({same / len(compared):.2%})",
        f"{perhaps} ({perhaps / len(compared):.2%})",
        f"{compared[0]:.2f}",
        f"{statistics.median(compared):.2f}",
        f"{compared[-1]:.2f}",
    ]


def cpu_seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """CPU time of one call, the median over rounds."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def measure_cost() -> None:
    """Print what a volume of 400 x 400 x 300 mm and its pairs take."""
    volume_hu = np.random.default_rng(0).integers(-1000, 1000, (300, 400, 400)).astype(np.int16)
    whole, part = pattern_of(volume_hu, 1.0), pattern_of(volume_hu[50:200, 100:300, 100:300], 1.0)
    other = whole._replace(coarse=whole.coarse[::-1])
    print(f"pattern of a volume of 300 x 400 x 400 mm: {cpu_seconds(lambda: pattern_of(volume_hu, 1.0)):.3f} s")
    print(f"it and another of this size, unlike it: {cpu_seconds(lambda: correlation(whole, other)):.4f} s")
    print(f"it and a scan of half its edges, unlike it: {cpu_seconds(lambda: correlation(other, part)):.4f} s")
    print(f"it and itself: {cpu_seconds(lambda: correlation(whole, whole)):.4f} s")


def main() -> None:
    """Measure recognition, false alarms and cost."""
    if any(os.environ.get(name) != "1" for name in THREAD_VARIABLES):  # the libraries read them once, when they load
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | dict.fromkeys(THREAD_VARIABLES, "1"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--changed", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=20_000)
    arguments = parser.parse_args()
    paths = sorted(p for folder in arguments.folders for p in folder.glob("*.nii.gz") if "_seg" not in p.name)
    np.random.default_rng(SEED).shuffle(paths)
    volumes: dict[Path, Pattern] = {}
    for path in paths:
        try:
            volumes[path] = read_pattern(path)
        except UnusableScanError as error:
            print(f"{path.name} {error}")
    changed: dict[str, dict[Path, Pattern]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in CHANGES.items():
            some = list(volumes)[: None if name in (ALL, CROPPED) else arguments.changed]
            patterns = {p: read_changed(p, changes, SEED + i, Path(folder)) for i, p in enumerate(some)}
            changed[name] = {path: pattern for path, pattern in patterns.items() if pattern is not None}
    heads = ["", "pairs", "the same scan", "perhaps", "lowest", "median", "highest"]
    found = {
        name: [correlation(pattern, volumes[path]) for path, pattern in patterns.items()]
        for name, patterns in changed.items()
    }
    print(markdown_table(heads, [[name, *shares(values)] for name, values in found.items()]), flush=True)
    alarms = {}
    for name, patterns in {"whole": volumes, CROPPED: changed[CROPPED], ALL: changed[ALL]}.items():
        pairs = [pair for pair in itertools.product(patterns, volumes) if pair[0] != pair[1]]
        drawn = np.random.default_rng(SEED).permutation(len(pairs))[: arguments.pairs]
        values = alarms[f"{name}, and another"] = []
        start = time.process_time()
        for first, second in (pairs[i] for i in drawn):
            values.append(correlation(patterns[first], volumes[second]))
            if values[-1] >= PERHAPS:  # to be looked at: a collection may hold a patient twice
                print(f"{name}: {first.name} and {second.name}: {values[-1]:.3f}")
        print(f"{name}, and another: {(time.process_time() - start) / len(drawn):.4f} s per pair", flush=True)
    print(markdown_table(heads, [[name, *shares(values)] for name, values in alarms.items()]), flush=True)
    measure_cost()
    every, false = (list(itertools.chain(*values.values())) for values in (found, alarms))
    print_json(
        {
            "recognised": sum(value >= SAME_SCAN for value in every) / len(every),
            "false alarms": sum(value >= SAME_SCAN for value in false) / len(false),
            "pairs of different patients": len(false),
        }
    )


if __name__ == "__main__":
    main()
