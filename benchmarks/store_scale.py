"""Start time and memory per loader worker for a store of many volumes.

    python benchmarks/store_scale.py [--volumes 100000] [--samples 200] [--quick]

Makes a store of that many volumes in a temporary folder: a manifest like a real one, and hard links to a few small
volumes. Then opens it in a new process, lists the sub-volumes, and reads samples in two worker processes, once forked
and once spawned. Memory is the highest resident size, less that of a process that only imports. The last line is a
JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RADIOGRAPH_READS = 200
FILES = 8
IMPORTS = "import torch, pretraining.views.loader, pretraining.config"


def make_store(folder: Path, count: int) -> None:
    """A store of ``count`` volumes; they are links to a few files."""
    from pretraining.store import store as layout
    from pretraining.store.writer import Source, StoreWriter, new_manifest
    from pretraining.system.files import write_json

    writer, rng = StoreWriter(folder), np.random.default_rng(0)
    writer.prepare()
    for index in range(FILES):
        shape = (int(rng.integers(200, 330)), int(rng.integers(250, 400)), int(rng.integers(300, 400)))
        volume = np.resize(rng.integers(-1000, 300, 4096), shape).astype(np.int16)
        path = f"hospital_{index:02}/patient_{index:06}/chest abdomen pelvis {index}.nii.gz"
        source = Source(path, 10**8, 17 * 10**17, "ab" * 32, shape[::-1], (0.765625, 0.765625, 1.25))
        writer.add(f"file_{index}", volume, np.resize(np.float32([-1, 1]), (shape[0], shape[2])), source)
    files, entries = writer.finished(), {}
    for number in range(count):
        origin = f"file_{number % FILES}"
        volume_id = f"hospital_{number % 40:02}__patient_{number:06}__chest_abdomen_pelvis_{number % 7}"
        source = files[origin]["source"] | {"path": volume_id.replace("__", "/"), "mtime_ns": 17 * 10**17 + number}
        entries[volume_id] = {"shape": files[origin]["shape"], "sha256": f"{number:064x}", "source": source}
        for path_of in (layout.volume_path, layout.entry_path, layout.radiograph_path):
            os.link(path_of(folder, origin), path_of(folder, volume_id))
    write_json(layout.manifest_path(folder), new_manifest(entries, complete=True))


def status(field: str) -> int:
    """A size in kB that the system keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


class Probe:
    """A data set that reads the stream's samples and returns (process, highest memory in kB, open files)."""

    def __init__(self, stream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, n: int) -> tuple[int, int, int]:
        """Read sample ``n``; then look at this process."""
        self.stream[n]
        return os.getpid(), status("VmHWM"), len(list(Path("/proc/self/fd").iterdir()))


def measure(folder: Path, method: str, samples: int) -> dict:
    """Open the store in this process and read samples in two worker processes."""
    import torch
    from torch.utils.data import DataLoader

    from pretraining.config import PretrainConfig
    from pretraining.store.store import Store
    from pretraining.views.loader import ViewStream
    from pretraining.views.make_views import xray_view

    start = time.perf_counter()
    store = Store.open(folder)
    opened = time.perf_counter()
    store.fingerprint()
    fingerprinted = time.perf_counter()
    stream = ViewStream(store, PretrainConfig())
    listed = time.perf_counter()
    torch.set_num_threads(1)
    loader = DataLoader(
        Probe(stream), 1, sampler=range(samples), num_workers=2, multiprocessing_context=method,
        worker_init_fn=one_thread,
    )  # fmt: skip
    workers: dict[int, list[tuple[int, int]]] = {}
    for process, peak_kb, files in loader:
        workers.setdefault(int(process), []).append((int(peak_kb), int(files)))
    some = store.ids[:: max(1, len(store) // RADIOGRAPH_READS)]
    start_reads = time.perf_counter()
    for volume_id in some:
        xray_view(store.radiograph(volume_id), (96, 96))
    reads = (time.perf_counter() - start_reads) / len(some)
    return {
        "open_s": opened - start,
        "fingerprint_s": fingerprinted - opened,
        "list_s": listed - fingerprinted,
        "subvolumes": len(stream.subvolumes),
        "main_kb": status("VmHWM"),
        "worker_kb": max(seen[-1][0] for seen in workers.values()),
        "worker_growth_kb": max(seen[-1][0] - seen[len(seen) // 2][0] for seen in workers.values()),
        "open_files": max(files for seen in workers.values() for _, files in seen),
        "radiograph_ms": 1000 * reads,
    }


def one_thread(_: int) -> None:
    """One thread per worker, as in training; spawned workers import this by name."""
    import torch

    torch.set_num_threads(1)


def main() -> None:
    """Make the store, measure in processes of their own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="40 samples")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    samples = 40 if arguments.quick else arguments.samples
    if arguments.measure:
        print(json.dumps(measure(Path(arguments.measure[0]), arguments.measure[1], samples)))
        return
    look = f"{IMPORTS}\nprint(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')).split()[1])"
    bare_kb = int(subprocess.run([sys.executable, "-c", look], check=True, stdout=subprocess.PIPE).stdout)
    results = {}
    with tempfile.TemporaryDirectory(prefix="store_scale_") as folder:
        make_store(Path(folder) / "store", arguments.volumes)
        for method in ("fork", "spawn"):
            command = [sys.executable, __file__, "--samples", str(samples), "--measure", f"{folder}/store", method]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
            results[method] = json.loads(done.stdout.splitlines()[-1])
    print(f"{arguments.volumes} volumes, {results['fork']['subvolumes']} sub-volumes, {samples} samples, 2 workers")
    print(f"bare import: {bare_kb / 1000:.0f} MB\n| | fork | spawn |\n|---|---|---|")
    for label, value in ROWS:
        print(f"| {label} | " + " | ".join(value(results[method], bare_kb) for method in ("fork", "spawn")) + " |")
    start = max(r["open_s"] + r["fingerprint_s"] + r["list_s"] for r in results.values())
    worker = max(r["worker_kb"] for r in results.values()) - bare_kb
    print(json.dumps({"store_start_s": round(start, 2), "store_worker_mb": round(worker / 1000)}))


ROWS = (
    ("open, s", lambda r, bare: f"{r['open_s']:.2f}"),
    ("fingerprint, s", lambda r, bare: f"{r['fingerprint_s']:.2f}"),
    ("list sub-volumes, s", lambda r, bare: f"{r['list_s']:.2f}"),
    ("main process over the bare import, MB", lambda r, bare: f"{(r['main_kb'] - bare) / 1000:.0f}"),
    ("worker over the bare import, MB", lambda r, bare: f"{(r['worker_kb'] - bare) / 1000:.0f}"),
    ("of it since half of the samples, MB", lambda r, bare: f"{r['worker_growth_kb'] / 1000:.1f}"),
    ("files open in a worker", lambda r, bare: f"{r['open_files']}"),
    ("X-ray view, read anew, ms", lambda r, bare: f"{r['radiograph_ms']:.2f}"),
)


if __name__ == "__main__":
    main()
