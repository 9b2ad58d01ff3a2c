"""Resampling to 1 mm: ours against SimpleITK's B-spline, alternating in one run, one thread each.

    python benchmarks/resampling.py SCAN [SCAN ...] [--rounds 5]

Prints medians of CPU seconds per scan and, as the last line, a JSON object of the smallest ratio, SimpleITK / ours.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from pretraining.data.geometry import resample_cubic, resampled_shape


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Run both sides on every scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    ratios = []
    print("| scan | SimpleITK, s | ours, s | ratio |\n|---|---|---|---|")
    for path in arguments.scans:
        image = sitk.ReadImage(path, sitk.sitkFloat32)
        image.SetDirection(np.eye(3).ravel())
        image.SetOrigin((0, 0, 0))
        volume, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
        size = resampled_shape(volume.shape, spacing)
        corner = [((n - 1) * s - (new - 1)) / 2 for n, s, new in zip(volume.shape, spacing, size, strict=True)]
        grid = (size[::-1], sitk.Transform(), sitk.sitkBSpline, corner[::-1], (1, 1, 1), image.GetDirection())
        theirs, ours = [], []
        for _ in range(arguments.rounds):
            theirs.append(cpu_seconds(lambda image=image, grid=grid: sitk.Resample(image, *grid)))
            ours.append(cpu_seconds(lambda volume=volume, spacing=spacing: resample_cubic(volume, spacing)))
        medians = statistics.median(theirs), statistics.median(ours)
        ratios.append(medians[0] / medians[1])
        print(f"| {path.name} | {medians[0]:.2f} | {medians[1]:.2f} | {ratios[-1]:.1f} |")
    print(json.dumps({"resampling": round(min(ratios), 1)}))


if __name__ == "__main__":
    main()
