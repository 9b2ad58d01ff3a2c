"""What a comparison would take: hours and memory, from a few steps of each arm."""

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_cads.comparison.design import Design
from nnunetv2_cads.comparison.folder import ComparisonFolder
from nnunetv2_cads.comparison.work import timings, unfinished

logger = logging.getLogger(__name__)


def estimate(folder: ComparisonFolder, design: Design, device: str, received: Sequence[int]) -> int:
    """Print hours and memory of what is not done yet; OUT is left as it is.

    Args:
        folder: OUT, whose finished trainings count.
        design: of the comparison.
        device: cpu or cuda.
        received: signals that this process has received; one ends the timing.

    Returns:
        The exit code.
    """
    missing, total = unfinished(folder, design), 0.0
    logger.info("%d trainings of %d iterations are to be done", len(missing), design.epochs * design.iterations)
    with tempfile.TemporaryDirectory() as elsewhere:  # OUT has trainings that may be at work
        place = ComparisonFolder(Path(elsewhere))
        design.write(place.design)
        for name, cost in timings(place, design, device, received):
            count = sum(training.arm == name for training in missing)
            epoch = design.iterations * cost["seconds_per_iteration"] + cost["seconds_per_validation"]
            hours = count * (design.epochs * epoch + len(design.test) * cost["seconds_per_case"]) / 3600
            total += hours
            sys.stdout.write(
                f"{name}: {count} trainings, {hours:.1f} h ({cost['seconds_per_iteration']:.2f} s per iteration, "
                f"{cost['seconds_per_case']:.0f} s per test case), {cost['peak_memory_bytes'] / 2**30:.1f} GiB\n"
            )
    if received:
        return 128 + received[0]
    sys.stdout.write(f"all: {total:.1f} h on one such device; start-up and scoring come on top\n")
    return 0
