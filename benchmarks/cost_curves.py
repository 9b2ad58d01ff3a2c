"""How time and memory of a training step grow, and how many views workers prepare; writes a picture.

    python benchmarks/cost_curves.py [--out docs/cost_curves.png] [--quick] [--device cpu]

Each point is a process of its own: `cads_pretrain --estimate`'s figures on noise, for a batch, a head width or a crop,
all else as published with batch 8 and K = 4,096. The last line is a JSON object of all points.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tables import in_new_process, print_json

from nnunetv2_cads.demo.torsos.datasets import write_archive
from nnunetv2_cads.demo.torsos.torso import TorsoConfig
from pretraining.config import PretrainConfig
from pretraining.preprocess import Part, preprocess
from pretraining.run.estimate import estimate
from pretraining.store.store import Store
from pretraining.system.machine import keep_freed_memory
from pretraining.views.loader import ViewStream, make_loader

CURVES = {
    "batch_size": (1, 2, 4, 8, 16, 32),
    "head_out_dim": (4096, 15_000, 30_000, 60_000),
    "crop_size": ((16, 64, 64), (16, 96, 96), (16, 128, 128), (32, 96, 96)),
}
BASE = {"batch_size": 8, "head_out_dim": 4096, "warmup_epochs": 0}
LOADER_BATCHES = 12


def step_cost(settings: dict, device: str) -> tuple[float, float]:
    """Seconds and GiB of a step with some settings changed."""
    if device == "cpu":
        keep_freed_memory()
    if settings.get("crop_size", (0,))[0] > PretrainConfig().view.window_slices:
        settings = {**settings, "window_slices": settings["crop_size"][0]}
    config = PretrainConfig().replace(**{**BASE, **settings})
    result = estimate(config, 10, torch.device(device))
    return result.step_seconds, result.memory_bytes / 2**30


def loader_rate(store: Path, workers: int) -> float:
    """Samples per second of so many workers, the first batches of all left out."""
    config = PretrainConfig().replace(batch_size=16, num_workers=workers, epoch_samples=16)
    stream = ViewStream(Store.open(store), config)
    first = max(1, 4 * workers)  # prepared while the workers start
    loader = iter(make_loader(stream, config, 0, first + LOADER_BATCHES, torch.device("cpu")))
    for _ in range(first):
        next(loader)
    start = time.perf_counter()
    count = sum(1 for _ in loader)
    return count * config.optim.batch_size / (time.perf_counter() - start)


def main() -> None:
    """Measure all points, draw them, print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/cost_curves.png"))
    parser.add_argument("--quick", action="store_true", help="two points of each curve")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    points: dict[str, list[tuple]] = {}
    for name, values in CURVES.items():
        for value in values[:2] if arguments.quick else values:
            seconds, memory = in_new_process(step_cost, {name: value}, arguments.device).result()
            points.setdefault(name, []).append((value, round(seconds, 3), round(memory, 2)))
            print(f"{name} {value}: {seconds:.2f} s, {memory:.2f} GiB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        archive, store = Path(folder) / "archive", Path(folder) / "store"
        write_archive(archive, 4, TorsoConfig(), 0)
        preprocess(archive, store, 1, Part())
        for workers in (0, 1) if arguments.quick else (0, 1, 2, 4):
            rate = loader_rate(store, workers)
            points.setdefault("num_workers", []).append((workers, round(rate, 1)))
            print(f"num_workers {workers}: {rate:.0f} samples/s", flush=True)
    draw(points, arguments.out)
    print_json(points)


def draw(points: dict[str, list[tuple]], path: Path) -> None:
    """One panel per curve: step time on the left axis, memory on the right."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, values) in zip(figure.subplots(2, 2).flat, points.items(), strict=True):
        labels = [" x ".join(map(str, v[0])) if isinstance(v[0], tuple) else str(v[0]) for v in values]
        places = range(len(values)) if name == "crop_size" else [v[0] for v in values]
        axes.plot(places, [v[1] for v in values], "o-", label="time")
        axes.set_xticks(places, labels)
        axes.set(xlabel=name, ylabel="samples/s" if name == "num_workers" else "s per step", ylim=(0, None))
        if name != "num_workers":
            memory = axes.twinx()
            memory.plot(places, [v[2] for v in values], "s--", color="tab:orange", label="memory")
            memory.set(ylabel="GiB at the peak", ylim=(0, None))
            axes.legend(handles=[axes.lines[0], memory.lines[0]], loc="lower right")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
