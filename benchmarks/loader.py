"""The loader against a plain one: samples per second of one core, and how long training waits for data.

    python benchmarks/loader.py [SOURCE] [--quick]

The plain one is `pretraining.plain.loader`, reading as the published pipeline does: each sub-volume is a gzipped
NIfTI of its own, inflated whole to float64. SOURCE is a store or a folder of CT scans; without it, small synthetic
torsos are made. Both sides make the views of the published preset from the same sub-volumes, in turns, in one process
with one thread, every file in memory. Then a training on the CPU (batch 16, head width 60,000; with --quick 4 and
4,096) runs with one worker process. The last line is a JSON object: ``loader``, the plain loader's CPU time over
ours, and ``data_wait_share``, the part of the training steps' time that they waited for data.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import torch

from nnunetv2_cads.demo.torsos.torso import TorsoConfig, make_torso
from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.plain.loader import Views
from pretraining.preprocess import main as preprocess
from pretraining.store.store import Store, manifest_path
from pretraining.system.machine import keep_freed_memory
from pretraining.views.loader import ViewStream, make_loader
from pretraining.views.subvolumes import SubVolume

BODY_SCALE = (
    0.6  # 140 x 200 mm: windows of half a million voxels, fewer than those of an adult, so fast to read plainly
)
PREFETCHED = 4  # batches that a worker prepares ahead: the first ones say nothing about its speed


def open_source(source: Path | None, folder: Path, torsos: int) -> Store:
    """The store to measure on, made in ``folder`` where SOURCE is none."""
    if source is None:
        source = folder / "torsos"
        source.mkdir()
        for case in range(torsos):
            torso = make_torso(TorsoConfig(body_scale=BODY_SCALE), seed=case)
            image = sitk.GetImageFromArray(torso.image_hu)
            image.SetSpacing(torso.spacing_mm[::-1])
            sitk.WriteImage(image, source / f"torso_{case}.nii.gz")
    if manifest_path(source).exists():
        return Store.open(source)
    if preprocess([str(source), str(folder / "store"), "-np", "1"]) not in (0, 1):  # 1: some scans cannot be used
        raise SystemExit(f"{source}: holds no CT scan that can be used")
    return Store.open(folder / "store")


def write_subvolumes(store: Store, subvolumes: list[SubVolume], folder: Path) -> list[tuple[Path, Path]]:
    """Write each sub-volume as int16 HU to a gzipped NIfTI of its own, axes (x, y, z); radiographs once per volume."""
    files = []
    for number, subvolume in enumerate(subvolumes):
        image, radiograph = folder / f"{number}.nii.gz", folder / f"{subvolume.volume_id}.npy"
        region = tuple(slice(*limits) for limits in (subvolume.slices, subvolume.rows, subvolume.columns))
        voxels = store.window(subvolume.volume_id, region)
        nibabel.save(nibabel.Nifti1Image(voxels.transpose(), np.eye(4)), image)
        np.save(radiograph, store.radiograph(subvolume.volume_id))
        files.append((image, radiograph))
    return files


def times_per_sample(load: Callable[[object], object], items: Iterable[object]) -> tuple[float, float]:
    """CPU and wall seconds, means over the items."""
    items = list(items)
    cpu, wall = time.process_time(), time.perf_counter()
    for item in items:
        load(item)
    return (time.process_time() - cpu) / len(items), (time.perf_counter() - wall) / len(items)


def compare_loaders(store: Store, folder: Path, windows: int, rounds: int) -> float:
    """Run both loaders in turns, print the table, return the ratio of the median CPU times."""
    config = PretrainConfig()
    stream = ViewStream(store, config)
    chosen = np.random.default_rng(0).permutation(len(stream.subvolumes))[:windows]
    stream.subvolumes = [stream.subvolumes[number] for number in chosen]  # so that a pass visits each of these once
    stream.samples_per_pass = len(stream.subvolumes)
    files = write_subvolumes(store, stream.subvolumes, folder)
    views = Views(config.view)

    def plain(paths: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return views(nibabel.load(paths[0]).get_fdata().transpose(), np.load(paths[1]))

    np.random.seed(0)  # noqa: NPY002 (the plain loader draws from the global generator)
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
    for i in range(rounds + 1):  # the first round warms up
        passed = i * len(files)
        pair = times_per_sample(plain, files), times_per_sample(stream.__getitem__, range(passed, passed + len(files)))
        if i:
            for name, result in zip(times, pair, strict=True):
                times[name].append(result)
    voxels = np.mean([np.prod([high - low for low, high in (s.slices, s.rows, s.columns)]) for s in stream.subvolumes])
    print(f"{len(files)} sub-volumes of {voxels / 1e6:.2f} million voxels, {rounds} rounds, medians")
    print("| loader | CPU, ms per sample | wall, ms per sample | samples/s per core |\n|---|---|---|---|")
    medians = {
        name: [statistics.median(column) for column in zip(*values, strict=True)] for name, values in times.items()
    }
    for name, (cpu, wall) in medians.items():
        print(f"| {name} | {1e3 * cpu:.2f} | {1e3 * wall:.2f} | {1 / cpu:.0f} |")
    return medians["plain"][0] / medians["ours"][0]


def measure_wait(store: Store, batch_size: int, head_out_dim: int, steps: int) -> float:
    """Train and return the part of the time that went by waiting for the loader."""
    keep_freed_memory()  # as cads_pretrain does
    config = PretrainConfig().replace(
        batch_size=batch_size, head_out_dim=head_out_dim, num_workers=1, device="cpu", warmup_epochs=0
    )
    pretrainer = Pretrainer(config, steps_per_epoch=100, device=torch.device("cpu"))
    batches = iter(make_loader(ViewStream(store, config), config, 0, PREFETCHED + steps, torch.device("cpu")))
    waited, started = 0.0, 0.0
    for step in range(PREFETCHED + steps):
        if step == PREFETCHED:
            waited, started = 0.0, time.perf_counter()
        asked = time.perf_counter()
        views = next(batches)
        waited += time.perf_counter() - asked
        pretrainer.train_step(*views).loss.item()
    total = time.perf_counter() - started
    print(
        f"training, batch {batch_size}, K {head_out_dim}, {torch.get_num_threads()} threads, 1 worker: "
        f"{total / steps:.2f} s per step, of which {1e3 * waited / steps:.1f} ms waiting for data ({steps} steps)"
    )
    return waited / total


def main() -> None:
    """Measure both, print, end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", type=Path, nargs="?", help="a store, or a folder of CT scans")
    parser.add_argument("--quick", action="store_true", help="fewer sub-volumes and steps, a small training step")
    arguments = parser.parse_args()
    quick = arguments.quick
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = open_source(arguments.source, folder, torsos=4 if quick else 12)
        torch.set_num_threads(1)
        ratio = compare_loaders(store, folder, windows=16 if quick else 48, rounds=5 if quick else 9)
        torch.set_num_threads(threads)
        share = measure_wait(store, *((4, 4096, 6) if quick else (16, 60_000, 6)))
    print(json.dumps({"loader": round(ratio, 2), "data_wait_share": round(share, 4)}))


if __name__ == "__main__":
    main()
