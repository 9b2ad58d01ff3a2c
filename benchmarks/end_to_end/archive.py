"""An archive to a store: `cads_preprocess` beside the plain script, and where its time goes."""

import shutil
import statistics
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tables import in_new_process, markdown_table

from end_to_end.measured import Measured, measure
from end_to_end.plain import HAS_RAYS
from end_to_end.scans import make_body, with_noise, write_nifti, write_series
from pretraining.ct.find_scans import find_scans
from pretraining.ct.geometry import resample_hu, to_canonical
from pretraining.ct.radiograph import frontal_radiograph
from pretraining.ct.read_ct import read_ct
from pretraining.store.store import Store
from pretraining.store.writer import Source, StoreWriter
from pretraining.system.worker_pool import THREAD_VARIABLES

BENCHMARKS = Path(__file__).parents[1]
KINDS = ("dicom", "nifti")
EDGE, SMALL_EDGE = 512, 256
"""Rows and columns of the scans that are compared, and of those of `small_store`."""
ONE_THREAD = dict.fromkeys(THREAD_VARIABLES, "1")
PROFILED = 4
"""Scans of each kind at most, of which the steps are timed."""


def write_archive(work: Path, scans: int, rounds: int, edge: int) -> list[dict[str, Path]]:
    """For each round a folder of each kind with its part of the scans; what is there already stays."""
    folders = [
        {kind: work / f"{kind}_{edge}_{scans}" / f"round_{number}_of_{rounds}" for kind in KINDS}
        for number in range(rounds)
    ]
    body = None
    for index in range(scans):
        of_round = folders[index % rounds]
        for folder in of_round.values():
            folder.mkdir(parents=True, exist_ok=True)
        series, file = of_round["dicom"] / f"scan_{index:03d}", of_round["nifti"] / f"scan_{index:03d}.nii.gz"
        if series.exists() and file.exists():
            continue
        body = make_body(edge) if body is None else body
        volume_hu = with_noise(body, index)
        if not series.exists():
            write_series(series, volume_hu)
        if not file.exists():
            write_nifti(file, volume_hu)
    return folders


def compare(work: Path, scans: int, rounds: int, edge: int) -> dict[str, float]:
    """Both sides in turns on each round's folders; prints the tables.

    Args:
        work: folder for scans and results.
        scans: of each kind.
        rounds: into which they are divided.
        edge: rows and columns of a scan.

    Returns:
        Medians over the rounds by kind: plain / ours in seconds and in CPU seconds, ours / plain in memory.
    """
    folders = write_archive(work, scans, rounds, edge)
    taken = {(kind, side): [] for kind in KINDS for side in ("plain", "ours")}
    for of_round in folders:
        for kind, source in of_round.items():
            count = sum(not path.name.startswith("writing_") for path in source.iterdir())
            for side in ("plain", "ours"):
                target = _target(work, kind, side)
                taken[kind, side].append((count, _run(side, source, target)))
    print(f"\n{scans} scans of {edge} x {edge} x 100 voxels of each kind, {rounds} rounds, one thread; ", end="")
    print("the plain radiograph is ITK's DRR" if HAS_RAYS else "the plain radiograph is a mean: itk is not installed")
    rows, ratios = [], {}
    for kind in KINDS:
        pairs = list(zip(taken[kind, "plain"], taken[kind, "ours"], strict=True))
        ratios[f"{kind}_seconds"] = statistics.median(a.seconds / b.seconds for (_, a), (_, b) in pairs)
        ratios[f"{kind}_cpu_seconds"] = statistics.median(a.cpu_seconds / b.cpu_seconds for (_, a), (_, b) in pairs)
        ratios[f"{kind}_memory"] = statistics.median(b.peak_bytes / a.peak_bytes for (_, a), (_, b) in pairs)
        for side in ("plain", "ours"):
            values = [(m.seconds / n, m.cpu_seconds / n, m.peak_bytes / 2**30) for n, m in taken[kind, side]]
            medians = [f"{statistics.median(column):.2f}" for column in zip(*values, strict=True)]
            rows.append([kind, side, *medians])
    print(markdown_table(["scans", "side", "s per scan", "CPU s per scan", "peak memory, GiB"], rows))
    print(_difference(_target(work, "nifti", "plain"), _target(work, "nifti", "ours")))
    for kind in KINDS:
        # in a process of its own with one thread, as the command: threads that wait for each other count as busy
        seconds = in_new_process(seconds_of_steps, folders[0][kind], work / "steps", environment=ONE_THREAD).result()
        rows = [[name, f"{value:.2f}", f"{value / sum(seconds.values()):.0%}"] for name, value in seconds.items()]
        print(f"\n{kind}, our steps without loading, {PROFILED} scans at most")
        print(markdown_table(["step", "CPU s per scan", "share"], rows))
    return {name: round(value, 3) for name, value in ratios.items()}


def small_store(work: Path) -> Path:
    """A store of two small scans."""
    (folder,) = write_archive(work, 2, 1, SMALL_EDGE)
    store = work / "small_store"
    if not store.exists():
        measure(["cads_preprocess", str(folder["nifti"]), str(store), "-np", "1"], ONE_THREAD)
    return store


def _target(work: Path, kind: str, side: str) -> Path:
    return work / f"{kind}_{side}"


def _run(side: str, source: Path, target: Path) -> Measured:
    """One side on one folder of scans, as a command with its loading."""
    shutil.rmtree(target, ignore_errors=True)
    if side == "ours":
        return measure(["cads_preprocess", str(source), str(target), "-np", "1"], ONE_THREAD)
    command = ["python", "-m", "end_to_end.plain", str(source.absolute()), str(target.absolute())]
    return measure(command, ONE_THREAD, BENCHMARKS)


def _difference(plain: Path, ours: Path) -> str:
    """How far both sides' results of one scan are apart."""
    store = Store.open(ours)
    name = store.ids[0]
    differences = np.abs(
        store.volume(name)[:].astype(np.int32) - sitk.GetArrayFromImage(sitk.ReadImage(plain / f"{name}.nii.gz"))
    )
    alike = np.corrcoef(store.radiograph(name).ravel(), np.load(plain / f"{name}.npy").ravel())[0, 1]
    return (
        f"{name}: {np.mean(differences > 1):.2%} of the voxels differ by more than 1 HU, correlation of the "
        f"radiographs {alike:.4f}"
    )


def seconds_of_steps(source: Path, store: Path) -> dict[str, float]:
    """Where our time goes: CPU seconds per scan of the parts that `cads_preprocess` is made of, in this process."""
    shutil.rmtree(store, ignore_errors=True)
    writer = StoreWriter(store)
    writer.prepare()
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    scans, _ = find_scans(source, store)
    clock.lap("search, per scan")
    found = len(scans)
    for name in seconds:
        seconds[name] *= min(PROFILED, found) / found
    for scan in scans[:PROFILED]:
        size_bytes, mtime_ns = scan.stat()
        clock.start()
        image = read_ct(scan)
        clock.lap("reading and checks")
        digest = scan.sha256()
        clock.lap("checksum of the files")
        volume, spacing_mm = to_canonical(image.values, image.spacing_xyz_mm, image.direction)
        volume_hu = np.rint(resample_hu(volume, spacing_mm)).astype(np.int16)
        clock.lap("resampling")
        picture = frontal_radiograph(volume_hu)
        clock.lap("radiograph")
        shape = image.values.shape[::-1]
        writer.add(
            scan.volume_id, volume_hu, picture, Source(scan.name, size_bytes, mtime_ns, digest, shape, spacing_mm)
        )
        clock.lap("packing, checksum and writing")
    return {name: value / min(PROFILED, found) for name, value in seconds.items()}


class _Clock:
    """Adds up CPU seconds by name."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self.start()

    def start(self) -> None:
        self._begun = time.process_time()

    def lap(self, name: str) -> None:
        now = time.process_time()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._begun
        self._begun = now
