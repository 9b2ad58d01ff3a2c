"""Whole commands beside what a user would run otherwise, in turns, with their loading.

    cd benchmarks && python -m end_to_end [archive] [networks] [startup] [--quick] [--work FOLDER]

archive: `cads_preprocess` beside a plain script (SimpleITK and ITK's ray caster, `end_to_end.plain`) on 20 DICOM series
and 20 NIfTI files, and where our time goes. networks: 20 iterations of `nnUNetv2_train`, and `nnUNetv2_predict` of
three cases, with PlainConvUNet, ResEnc-M and PVT-UNet for the same patch, on synthetic torsos; and when a prediction
begins its first tile. startup: `cads_pretrain` up to its first step. All by default, on the CPU. Data are written once
into the work folder: 2 GB for the archive, with ``--quick`` 0.2 GB.

Seconds are medians over rounds; a ratio is the median of the ratios within a round. Memory is that of a command and its
processes together. ``--quick`` takes two scans of each kind, two iterations, no ResEnc-M, and one round. The last line
is a JSON object: `archive`, plain / ours by kind of scan (ours / plain for memory); `networks`, PVT-UNet over
PlainConvUNet; `startup`, seconds.
"""

import argparse
import os
import tempfile
from pathlib import Path

from tables import print_json

from end_to_end import archive, networks, startup
from pretraining.system.machine import core_count

PARTS = ("archive", "networks", "startup")


def main() -> None:
    """Measure the parts and print their tables."""
    parser = argparse.ArgumentParser(
        prog="python -m end_to_end", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--scans", type=int, help="of each kind (20)")
    parser.add_argument("--rounds", type=int, help="how often each is run (5)")
    parser.add_argument("--work", type=Path, help="folder that keeps the data for a later call")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: is none of {', '.join(PARTS)}")
    quick = arguments.quick
    scans = arguments.scans or (2 if quick else 20)
    rounds = arguments.rounds or (1 if quick else 5)
    results: dict[str, dict[str, float]] = {}
    print(f"{core_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        for part in arguments.parts or PARTS:
            if part == "archive":
                results[part] = archive.compare(work, scans, rounds, archive.EDGE)
            elif part == "networks":
                results[part] = networks.compare(work, networks.QUICK if quick else networks.FULL, rounds)
            else:
                results[part] = startup.time_first_step(work, archive.small_store(work), rounds)
            print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    print_json(results)


if __name__ == "__main__":
    main()
