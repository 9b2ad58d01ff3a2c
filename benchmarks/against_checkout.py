"""This checkout against another one, such as the commit before a change: is anything slower?

    git worktree add /tmp/before COMMIT && python benchmarks/against_checkout.py /tmp/before [--rounds 5]

Each measurement is a new process that imports one of the two checkouts; both sides take turns. Prints the medians in
CPU seconds of one thread (of preprocessing: in seconds), and their ratio (this one / the other one). Only public
commands and classes are used, so that checkouts whose files stand elsewhere can be compared. The last line is a JSON
object of the ratios.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tables import heading, print_json, row

HERE = Path(__file__).parents[1]
COMMANDS = """
import resource, sys, time
import matplotlib.figure  # which one checkout loads with its modules, and another within the call
from pathlib import Path
try:
    from pretraining.preprocess import main as preprocess
    from pretraining.train import main as pretrain
    from pretraining.views.loader import ViewStream
    from pretraining.store.store import Store
except ImportError:  # a checkout of before the folders were named after the data
    from pretraining.cli import preprocess, pretrain
    from pretraining.data.loader import ViewStream
    from pretraining.data.store import Store

def cpu_seconds():
    return sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime
               for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
"""
MEASURES = {
    "preprocess 3 scans, s": """
before = time.perf_counter()  # the system counts a worker's CPU time only when it has ended
assert preprocess([scans, store + "_new", "-np", "1"]) == 0
print(time.perf_counter() - before)
""",
    "views of a sample, s": """
from pretraining.config import PretrainConfig
stream = ViewStream(Store.open(store), PretrainConfig())
for n in range(4): stream[n]
before = cpu_seconds()
for n in range(4, 68): stream[n]
print((cpu_seconds() - before) / 64)
""",
    "pre-training run of 8 steps, s": """
flags = ["--preset=cads", "--batch-size=16", "--epochs=1", "--epoch-samples=128", "--num-workers=0", "--device=cpu"]
before = cpu_seconds()
assert pretrain([store, store + "_run", *flags]) == 0
print(cpu_seconds() - before)
""",
    "fine-tuning step, s": """
import torch
from nnunetv2_cads.network_architecture import PVTUNet
torch.manual_seed(0)
network, x = PVTUNet(1, 5), torch.randn(2, 1, 32, 96, 96)
optimizer = torch.optim.AdamW(network.parameters(), fused=True)
def step():
    optimizer.zero_grad()
    sum(output.square().mean() for output in network(x)).backward()
    optimizer.step()
step()
before = cpu_seconds()
for _ in range(3): step()
print((cpu_seconds() - before) / 3)
""",
}


def write_scans(folder: Path) -> None:
    """Three bodies of 160 x 160 x 80 voxels of 1.5 x 1.5 x 2 mm, each with noise of its own."""
    folder.mkdir()
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, edge) for edge in (80, 160, 160)), indexing="ij")
    body = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 40.0, -1000.0)
    body[(x - 0.4) ** 2 + y**2 + (z - 0.4) ** 2 < 0.1] = -800
    body[x**2 + (y - 0.4) ** 2 < 0.01] = 700
    for seed in range(3):
        noisy = body + np.random.default_rng(seed).normal(0, 20, body.shape)
        image = sitk.GetImageFromArray(np.rint(noisy).astype(np.int16))
        image.SetSpacing((1.5, 1.5, 2.0))
        sitk.WriteImage(image, str(folder / f"scan_{seed}.nii.gz"))


def measure(checkout: Path, code: str, scans: Path, store: Path) -> float:
    """The number that a measurement prints last, in a new process that imports ``checkout``."""
    variables = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        own = Path(scratch) / "store"
        if store.exists():
            own.symlink_to(store)
        setting = f"{COMMANDS}\nscans, store = {str(scans)!r}, {str(own)!r}\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", setting],
            cwd=scratch,  # Python looks for modules in the current folder first
            env=os.environ | variables,
            capture_output=True,
            encoding="utf-8",
        )
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure both sides in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scans, store = Path(folder) / "scans", Path(folder) / "store"
        write_scans(scans)
        make = f"assert preprocess([scans, {str(store)!r}, '-np', '1']) == 0\nprint(0)"
        measure(arguments.other.absolute(), make, scans, store)
        print(heading(["", "this checkout", "the other one", "ratio"]), flush=True)
        ratios = {}
        for name, code in MEASURES.items():
            seconds: dict[Path, list[float]] = {HERE: [], arguments.other.absolute(): []}
            for _ in range(arguments.rounds):
                for checkout, of_side in seconds.items():
                    of_side.append(measure(checkout, code, scans, store))
            here, other = map(statistics.median, seconds.values())
            ratios[name] = round(here / other, 3)
            print(row([name, f"{here:.3f}", f"{other:.3f}", f"{here / other:.2f}"]), flush=True)
    print_json(ratios)


if __name__ == "__main__":
    main()
