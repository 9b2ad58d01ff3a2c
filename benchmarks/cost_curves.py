"""How the costs of a training step, the loader and the store grow; writes a picture.

    python benchmarks/cost_curves.py [--out docs/cost_curves.png] [--quick] [--device cpu]

Each point is a process of its own: `cads_pretrain --estimate`'s figures on noise, for a batch, a head width or a crop,
all else as published with batch 8 and K = 4,096; the samples per second of so many workers; or opening a store of so
many volumes (a small one, repeated) and listing its sub-volumes. The last line is a JSON object: all
points, and per curve the exponent with which seconds and memory, or samples per second, grow from its smallest size to
its largest. 1 is linear; what a step costs at any size makes it less.
"""

import argparse
import itertools
import math
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
from pretraining.store.store import Store, manifest_path, radiograph_path, read_manifest, volume_path
from pretraining.store.writer import new_manifest
from pretraining.system.files import write_json
from pretraining.system.machine import keep_freed_memory, peak_memory, resident_memory
from pretraining.views.loader import ViewStream, make_loader
from pretraining.views.subvolumes import SubVolumes

CURVES = {
    "batch_size": (1, 2, 4, 8, 16, 32),
    "head_out_dim": (4096, 15_000, 30_000, 60_000),
    "crop_size": ((16, 64, 64), (16, 96, 96), (16, 128, 128), (32, 96, 96)),
}
BASE = {"batch_size": 8, "head_out_dim": 4096, "warmup_epochs": 0}
LOADER_BATCHES = 12
WORKERS = (0, 1, 2, 4)
VOLUMES = (1_000, 10_000, 100_000)


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


def write_large_store(folder: Path, small: Path, volumes: int) -> None:
    """A store of so many volumes: the entries of a small one again and again, with links to its files."""
    entries, repeated = itertools.cycle(read_manifest(small)["volumes"].items()), {}
    for path_of in (volume_path, radiograph_path):
        path_of(folder, "any").parent.mkdir(parents=True)
    for number in range(volumes):
        origin, entry = next(entries)
        volume_id = f"hospital_{number % 40:02}__patient_{number:06}"
        repeated[volume_id] = entry | {"sha256": f"{number:064x}"}
        for path_of in (volume_path, radiograph_path):
            path_of(folder, volume_id).symlink_to(path_of(small, origin))
    write_json(manifest_path(folder), new_manifest(repeated, complete=True))


def store_cost(folder: Path) -> tuple[float, float]:
    """Seconds and GiB of opening a store and listing its sub-volumes."""
    before, start = resident_memory(), time.perf_counter()
    kept = SubVolumes(Store.open(folder), PretrainConfig().view)
    seconds = time.perf_counter() - start
    del kept
    return seconds, (peak_memory(torch.device("cpu")) - before) / 2**30


def exponents(values: list[tuple]) -> list[float]:
    """Of the growth of each cost from the smallest size to the largest; of the crop, in voxels."""
    sizes = [math.prod(v[0]) if isinstance(v[0], tuple) else v[0] for v in values]
    of_size = dict(zip(sizes, values, strict=True))
    small, large = min(size for size in sizes if size > 0), max(sizes)
    pairs = zip(of_size[small][1:], of_size[large][1:], strict=True)
    return [round(math.log(b / a) / math.log(large / small), 2) for a, b in pairs]


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
            points.setdefault(name, []).append((value, round(seconds, 3), round(memory, 3)))
            print(f"{name} {value}: {seconds:.2f} s, {memory:.2f} GiB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        archive, store = Path(folder) / "archive", Path(folder) / "store"
        write_archive(archive, 4, TorsoConfig(), 0)
        preprocess(archive, store, 1, Part())
        for workers in WORKERS[:3] if arguments.quick else WORKERS:
            rate = loader_rate(store, workers)
            points.setdefault("num_workers", []).append((workers, round(rate, 1)))
            print(f"num_workers {workers}: {rate:.0f} samples/s", flush=True)
        for volumes in VOLUMES[:2] if arguments.quick else VOLUMES:
            large = Path(folder) / f"store_{volumes}"
            write_large_store(large, store, volumes)
            seconds, memory = in_new_process(store_cost, large).result()
            points.setdefault("volumes", []).append((volumes, round(seconds, 3), round(memory, 3)))
            print(f"volumes {volumes}: {seconds:.2f} s, {memory:.3f} GiB", flush=True)
    draw(points, arguments.out)
    print_json({"growth": {name: exponents(values) for name, values in points.items()}, "points": points})


def draw(points: dict[str, list[tuple]], path: Path) -> None:
    """One panel per curve: seconds on the left axis, memory on the right."""
    figure = Figure(figsize=(15, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(2, 3).flat)
    for empty in panels[len(points) :]:
        empty.remove()
    for axes, (name, values) in zip(panels, points.items(), strict=False):
        labels = [" x ".join(map(str, v[0])) if isinstance(v[0], tuple) else str(v[0]) for v in values]
        places = range(len(values)) if name == "crop_size" else [v[0] for v in values]
        axes.plot(places, [v[1] for v in values], "o-", label="time")
        axes.set_xticks(places, labels)
        ylabel = {"num_workers": "samples/s", "volumes": "s to open the store"}.get(name, "s per step")
        axes.set(xlabel=name, ylabel=ylabel, ylim=(0, None))
        if name != "num_workers":
            memory = axes.twinx()
            memory.plot(places, [v[2] for v in values], "s--", color="tab:orange", label="memory")
            memory.set(ylabel="GiB at the peak", ylim=(0, None))
            axes.legend(handles=[axes.lines[0], memory.lines[0]], loc="lower right")
        if name == "volumes":  # each size is ten times the one before
            for side in (axes, memory):
                side.set(xscale="log", yscale="log")
                side.autoscale()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
