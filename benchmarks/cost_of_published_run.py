"""What the published run would cost on common cards: hours, memory, storage and energy. Computed, not measured.

    python benchmarks/cost_of_published_run.py [--volumes 10000] [--utilisation 0.1] [--store STORE]

Measured here, on the CPU: the FLOPs of a step on our network, and its memory, from `cads_pretrain --estimate`'s parts
at two batch sizes, in float32. Stated by NVIDIA: the cards' dense bf16 rates, memory and power. Assumed, since nothing
of this was run on a GPU: how much of its rate a card reaches (``--utilisation``), how much several lose to waiting for
each other, what host and cooling take, and how large a scan is. Prints a Markdown table; the last line is a JSON object
of all figures and assumptions. Takes about a minute.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tables import in_new_process, markdown_table, print_json

from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.run.estimate import flops_per_step, random_sample
from pretraining.store.store import Store, radiograph_path, volume_path
from pretraining.system.machine import keep_freed_memory, peak_memory, reset_peak_memory, resident_memory

CPU = torch.device("cpu")
MEASURED_BATCHES = (4, 12)
SCAN_MM = (300, 360, 360)
"""Of a usual trunk, as `cads_preprocess` stores it: assumed."""
STORE_BYTES_PER_MM3 = 0.91
"""Of a real abdomen at 1 mm (33.9 MB of 336 x 303 x 366 voxels, docs/preprocessing.md)."""
EFFICIENCY = {1: 1.0, 4: 0.95, 16: 0.9}
"""What is left of the rate of so many cards that wait for each other: assumed."""
OVERHEAD = 1.5
"""Energy of host and cooling on top of the cards': assumed."""
LOADER_SAMPLES_PER_SECOND = 250
"""Of one core (docs/benchmarks.md)."""


@dataclass(frozen=True)
class Card:
    """A card as its maker states it.

    Attributes:
        name: of the card.
        bf16_flops: dense, per second.
        memory_bytes: of the card.
        watts: at most.
    """

    name: str
    bf16_flops: float
    memory_bytes: int
    watts: float


CARDS = (
    Card("A100 SXM 80 GB", 312e12, 80 * 10**9, 400),
    Card("H100 SXM 80 GB", 989e12, 80 * 10**9, 700),
    Card("RTX 4090 24 GB", 165e12, 24 * 10**9, 450),
)


def step_memory(batch: int) -> int:
    """Bytes that a step of the published network takes on the CPU in float32, above the bare import."""
    keep_freed_memory()
    imported = resident_memory()
    config = PretrainConfig().replace(batch_size=batch, warmup_epochs=0)
    pretrainer = Pretrainer(config, 10, CPU)
    sample = random_sample(config, batch)
    reset_peak_memory(CPU)
    for _ in range(2):
        pretrainer.train_step(*sample)
    return peak_memory(CPU) - imported


def sample_flops() -> float:
    """FLOPs of a training step for each sample."""
    config = PretrainConfig().replace(batch_size=1, warmup_epochs=0)
    return flops_per_step(Pretrainer(config, 10, CPU))


def bytes_per_mm3(store: Path) -> float:
    """What a store takes on the disk for each mm^3 of its volumes, radiographs included."""
    opened = Store.open(store)
    size = volume = 0.0
    for volume_id in opened.ids:
        size += sum(path_of(store, volume_id).stat().st_size for path_of in (volume_path, radiograph_path))
        slices, height, width = opened.shape(volume_id)
        volume += slices * height * width * opened.spacing_mm**3
    return size / volume


def main() -> None:
    """Measure what can be, compute the rest, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=10_000, help="scans of the archive (default: %(default)s)")
    parser.add_argument("--utilisation", type=float, default=0.1, help="part of its rate that a card reaches")
    parser.add_argument("--store", type=Path, help=f"to measure bytes per mm^3 (default: {STORE_BYTES_PER_MM3})")
    arguments = parser.parse_args()
    config = PretrainConfig()
    flops = in_new_process(sample_flops).result()
    small, large = (in_new_process(step_memory, batch).result() for batch in MEASURED_BATCHES)
    each = (large - small) / (MEASURED_BATCHES[1] - MEASURED_BATCHES[0])
    fixed = small - each * MEASURED_BATCHES[0]
    per_mm3 = bytes_per_mm3(arguments.store) if arguments.store else STORE_BYTES_PER_MM3
    storage = arguments.volumes * per_mm3 * SCAN_MM[0] * SCAN_MM[1] * SCAN_MM[2]
    windows = -(-(SCAN_MM[0] - config.view.window_slices) // config.view.window_stride) + 1
    samples = config.optim.epochs * arguments.volumes * windows
    costs = []
    for card in CARDS:
        for count, efficiency in EFFICIENCY.items():
            rate = count * efficiency * arguments.utilisation * card.bf16_flops / flops
            hours = samples / rate / 3600
            memory = fixed + each * config.optim.batch_size / count
            costs.append(
                {
                    "card": card.name, "cards": count, "hours": hours, "memory_bytes": memory,
                    "kwh": OVERHEAD * count * card.watts * hours / 1000,
                    "loader_cores": rate / LOADER_SAMPLES_PER_SECOND,
                }
            )  # fmt: skip
    print(
        f"{arguments.volumes} volumes, {samples / 1e6:.0f} million samples, {flops / 1e9:.1f} GFLOP each, "
        f"{storage / 1e9:.0f} GB of store, {100 * arguments.utilisation:g}% of the cards' dense bf16 rate"
    )
    heads = ["card", "cards", "hours", "GiB on each card", "kWh", "cores that prepare views"]
    rows = [
        [
            cost["card"], str(cost["cards"]), f"{cost['hours']:.1f}", f"{cost['memory_bytes'] / 2**30:.1f}",
            f"{cost['kwh']:.0f}", f"{cost['loader_cores']:.0f}",
        ]
        for cost in costs
    ]  # fmt: skip
    print(markdown_table(heads, rows))
    measured = {"flops_per_sample": flops, "bytes_fixed": fixed, "bytes_per_sample": each, "bytes_per_mm3": per_mm3}
    assumed = {"utilisation": arguments.utilisation, "efficiency": EFFICIENCY, "overhead": OVERHEAD, "mm": SCAN_MM}
    cards = [asdict(card) for card in CARDS]
    print_json({"measured": measured, "assumed": assumed, "cards": cards, "storage_bytes": storage, "costs": costs})


if __name__ == "__main__":
    main()
