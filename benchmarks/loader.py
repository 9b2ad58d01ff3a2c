"""Samples per second of one core that prepares views, for a store and a preset.

python benchmarks/loader.py STORE [--preset published] [--samples 48]
"""

import argparse
import statistics
import time
from pathlib import Path

from pretraining.config import PRESETS, PretrainConfig
from pretraining.data.loader import ViewStream
from pretraining.data.store import Store


def main() -> None:
    """Time every sample on its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="published")
    parser.add_argument("--samples", type=int, default=48)
    arguments = parser.parse_args()
    config = PretrainConfig().replace(**PRESETS[arguments.preset])
    stream = ViewStream(Store.open(arguments.store), config)
    stream[0]
    seconds = []
    for n in range(1, arguments.samples + 1):
        start = time.process_time()
        stream[n]
        seconds.append(time.process_time() - start)
    median = statistics.median(seconds)
    print(f"preset {arguments.preset}: {1000 * median:.1f} ms CPU per sample, {1 / median:.0f} samples/s per core")


if __name__ == "__main__":
    main()
