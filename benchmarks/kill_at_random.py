"""Kill the commands at random moments, start the same command again, and look whether anything was lost.

    python benchmarks/kill_at_random.py [--kills 50] [--only-last 4] [--seed 0] [--work FOLDER]

Four stages: preprocessing, training, writing a checkpoint, exporting. In each, a command is started and killed
(SIGKILL to all its processes) after a random time, over and over; one that reaches its end is compared with an unbroken
one, and started from scratch. After every kill, what lies on disk is read: nothing that was finished may be gone or
changed, and no file with its final name may be damaged. Prints the table of docs/reliability.md; exit code 1 if
anything was lost.

Every tenth command is the real one; the others are forked from this process, which has loaded PyTorch but used no
thread, since loading takes most of a start.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from nnunetv2_cads.encoder_file.read import read_encoder_file
from nnunetv2_cads.encoder_file.safe_loading import load_archive
from pretraining import export, preprocess, train
from pretraining.run.folder import CHECKPOINT, CONFIG, METRICS
from pretraining.run.metrics import read_metrics
from pretraining.store.store import Store
from pretraining.store.writer import StoreWriter, new_manifest

SCANS, EDGE = 12, 56
COMMANDS = {"preprocess": preprocess.main, "train": train.main, "export": export.main}
TINY = [
    "--preset=cads", "--encoder-size=b0", "--batch-size=2", "--head-out-dim=32", "--head-hidden-dim=32",
    "--head-bottleneck-dim=16", "--epochs=4", "--epoch-samples=4", "--warmup-epochs=1", "--log-every=1",
    "--device=cpu", "--num-workers=1",
    "--crop-size", "16", "64", "64",
]  # fmt: skip


class Lost(Exception):
    """Something that was finished is gone, changed or damaged."""


@dataclass
class Result:
    """One line of the table."""

    stage: str
    kills: int = 0
    finished: int = 0
    resumed: int = 0
    lost: int = 0

    def __str__(self) -> str:
        return f"| {self.stage} | {self.kills} | {self.resumed} | {self.finished} | {self.lost} |"


@dataclass(frozen=True)
class Stage:
    """What is started and killed, and what must be true.

    Attributes:
        name: for the table.
        command: the arguments of the next start, the command's name first.
        delay: seconds to wait before the kill; called with the command running.
        check: reads what lies on disk after a kill, and returns how much is finished.
        compare: compares what a finished command has left with an unbroken one's.
        clear: removes it.
    """

    name: str
    command: Callable[[], list[str]]
    delay: Callable[[], float]
    check: Callable[[], int]
    compare: Callable[[], None]
    clear: Callable[[], None]


def start(words: list[str], log: Path, really: bool) -> int:
    """Start a command in a process group of its own; returns its number."""
    if really:
        code = f"import sys; from pretraining.{words[0]} import main; sys.exit(main())"
        with log.open("ab") as file:
            return subprocess.Popen([sys.executable, "-c", code, *words[1:]], stdout=file, stderr=file,
                                    start_new_session=True).pid  # fmt: skip
    child = os.fork()
    if child:
        return child
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os._exit(COMMANDS[words[0]](words[1:]))


def run_to_end(words: list[str], log: Path) -> None:
    _, status = os.waitpid(start(words, log, really=False), 0)
    if status:
        raise SystemExit(f"{' '.join(words)} ended with {status}; see {log}")


def kill_over_and_over(stage: Stage, kills: int, log: Path, progress: Callable[[], None]) -> Result:
    """Start and kill until ``kills`` have hit a command at work; the last one may then run to its end."""
    result, starts, done_before, killed = Result(stage.name), 0, 0, False
    while result.kills < kills or killed:
        process = start(stage.command(), log, really=starts % 10 == 9)
        starts += 1
        result.resumed += killed
        end = time.monotonic() + stage.delay() if result.kills < kills else float("inf")
        status = None
        while status is None and time.monotonic() < end:
            ended, code = os.waitpid(process, os.WNOHANG)
            status = code if ended else None
            time.sleep(0.002)
        try:
            killed = status is None
            if killed:
                os.killpg(process, signal.SIGKILL)
                os.waitpid(process, 0)
                result.kills += 1
                done = stage.check()
                if done < done_before:
                    raise Lost(f"{done} finished after a kill, {done_before} before")
                done_before = done
            elif status:
                raise Lost(f"{' '.join(stage.command())} did not resume, status {status}")
            else:
                stage.compare()
                result.finished += 1
        except Exception as error:  # any failure to read what should be whole counts
            result.lost += 1
            sys.stderr.write(f"\n{stage.name}: {type(error).__name__}: {error}; see {log}\n")
            killed = False
        if not killed:
            stage.clear()
            done_before = 0
        progress()
    return result


def make_archive(folder: Path) -> Path:
    """Small bodies of noise in air."""
    folder.mkdir()
    for index in range(SCANS):
        hu = np.random.default_rng(index).integers(-1000, 400, (EDGE,) * 3).astype(np.int16)
        hu[:, :8] = -1000
        sitk.WriteImage(sitk.GetImageFromArray(hu), str(folder / f"{index:02d}.nii"))
    return folder


def preprocessing(work: Path, rng: random.Random, log: Path) -> Stage:
    """Twelve scans, two processes."""
    archive, store = make_archive(work / "archive"), work / "store"
    unbroken = work / "unbroken_store"
    since = time.monotonic()
    run_to_end(["preprocess", str(archive), str(unbroken), "-np", "2"], log)
    lasts = time.monotonic() - since
    expected = {name: Store.open(unbroken).volume(name)[:] for name in Store.open(unbroken).ids}

    def check() -> int:
        finished = StoreWriter(store).finished()
        so_far = Store(store, new_manifest(finished, complete=True))
        for name in finished:
            found, radiograph = so_far.volume(name)[:], so_far.radiograph(name)
            if not np.array_equal(found, expected[name]) or radiograph.shape != found.shape[::2]:
                raise Lost(f"{name} differs")
        return len(finished)

    def compare() -> None:
        if check() != SCANS or Store.open(store).fingerprint() != Store.open(unbroken).fingerprint():
            raise Lost("the store differs from the unbroken one")

    return Stage("preprocessing", lambda: ["preprocess", str(archive), str(store), "-np", "2"],
                 lambda: rng.uniform(0.0, lasts), check, compare, lambda: shutil.rmtree(store))  # fmt: skip


def losses(folder: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k != "samples_per_second"} for line in read_metrics(folder / METRICS)]


def training(work: Path, rng: random.Random, log: Path, in_checkpoint: bool) -> Stage:
    """Four epochs of two steps; killed at any time, or while a checkpoint is written."""
    store, run, unbroken = work / "unbroken_store", work / "run", work / "unbroken_run"
    since = time.monotonic()
    if not unbroken.exists():
        run_to_end(["train", str(store), str(unbroken), *TINY], log)
        (work / "lasts").write_text(str(time.monotonic() - since))
    lasts = float((work / "lasts").read_text())

    def command() -> list[str]:
        return ["train", str(store), str(run), *(["--c"] if (run / CONFIG).exists() else TINY)]

    def delay() -> float:
        if not in_checkpoint:
            return rng.uniform(0.0, lasts)
        end = time.monotonic() + 2 * lasts
        skip = rng.randrange(3)
        seen: set[str] = set()
        while len(seen) <= skip and time.monotonic() < end and not (run / "cads_encoder.pth").exists():
            seen |= {file.name for file in run.glob(f".{CHECKPOINT}.*.tmp")} if run.exists() else set()
            time.sleep(0.001)
        return rng.uniform(0.0, 0.6)

    def check() -> int:
        if not (run / CHECKPOINT).exists():
            return 0
        content = load_archive(run / CHECKPOINT)
        return content["step"]

    def compare() -> None:
        ours, theirs = (load_archive(folder / CHECKPOINT) for folder in (run, unbroken))
        if losses(run) != losses(unbroken):
            raise Lost("the losses differ from the unbroken run's")
        if not all(torch.equal(ours["teacher"][key], value) for key, value in theirs["teacher"].items()):
            raise Lost("the weights differ from the unbroken run's")
        if list(run.glob(".*.tmp")):
            raise Lost("temporary files are left")

    name = "writing a checkpoint" if in_checkpoint else "training"
    return Stage(name, command, delay, check, compare, lambda: shutil.rmtree(run))


def exporting(work: Path, rng: random.Random, log: Path) -> Stage:
    """An encoder from the unbroken run's checkpoint, in both formats in turn."""
    out, names = work / "exported", iter_names()
    out.mkdir()
    current = [next(names)]
    source = work / "unbroken_run" / CHECKPOINT
    since = time.monotonic()
    run_to_end(["export", str(source), str(work / "unbroken.pth")], log)
    lasts = time.monotonic() - since
    expected = read_encoder_file(work / "unbroken.pth").state

    def check() -> int:
        for file in out.iterdir():
            if not file.name.startswith("."):
                state = read_encoder_file(file).state
                if state.keys() != expected.keys() or not all(torch.equal(v, expected[k]) for k, v in state.items()):
                    raise Lost(f"{file} differs")
                file.unlink()  # whole, but killed before the command could say so
        return 0

    def clear() -> None:
        check()
        current[0] = next(names)

    return Stage("exporting", lambda: ["export", str(source), str(out / current[0])],
                 lambda: rng.uniform(0.0, lasts), check, lambda: None, clear)  # fmt: skip


def iter_names() -> Iterator[str]:
    while True:
        yield "encoder.pth"
        yield "encoder.safetensors"


def main() -> int:
    """Run the stages; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="per stage")
    parser.add_argument("--only-last", type=int, default=4, metavar="N", help="kill in the last N stages alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder to work in (default: a temporary one)")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    if arguments.work:
        arguments.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="kill_", dir=arguments.work))
    log = work / "log.txt"
    results = []
    makers = (
        lambda: preprocessing(work, rng, log),
        lambda: training(work, rng, log, in_checkpoint=False),
        lambda: training(work, rng, log, in_checkpoint=True),
        lambda: exporting(work, rng, log),
    )
    for number, make in enumerate(makers):
        stage = make()  # also where nothing is killed in it: later stages use what it has made
        if number < len(makers) - arguments.only_last:
            continue
        results.append(kill_over_and_over(stage, arguments.kills, log, lambda: print(".", end="", flush=True)))
        print(f"\n{results[-1]}", flush=True)
    print("| stage | kills | resumed | finished, compared | lost |\n|---|---|---|---|---|", *results, sep="\n")
    lost = sum(result.lost for result in results)
    if not lost:
        shutil.rmtree(work)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
