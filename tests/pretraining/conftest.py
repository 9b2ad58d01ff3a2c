"""A small body in HU that looks different from every side, and a store of such bodies."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pretraining.preprocess import main as preprocess
from pretraining.train import main as pretrain


@pytest.fixture(scope="session")
def make_body() -> Callable[..., sitk.Image]:
    """Makes a body as an image in SimpleITK's own axes: x to the patient's left, y to the back, z headward."""

    def make(shape=(30, 36, 44), spacing_xyz_mm=(1.0, 1.0, 1.0), seed=0) -> sitk.Image:
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, edge) for edge in shape), indexing="ij")
        hu = np.full(shape, -1000.0)
        hu[(x / 0.8) ** 2 + (y / 0.7) ** 2 < 1] = 40
        hu[((x - 0.4) / 0.25) ** 2 + (y / 0.4) ** 2 + ((z - 0.4) / 0.5) ** 2 < 1] = -800  # a lung, left and high
        hu[(x / 0.12) ** 2 + ((y - 0.5) / 0.15) ** 2 < 1] = 700  # the spine, at the back
        hu += np.random.default_rng(seed).normal(0, 20, shape)
        image = sitk.GetImageFromArray(np.rint(hu).astype(np.int16))
        image.SetSpacing(spacing_xyz_mm)
        return image

    return make


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory, make_body: Callable[..., sitk.Image]) -> Path:
    """A store of three small bodies, made with the real command. One is smaller than a crop, one is wide."""
    folder = tmp_path_factory.mktemp("archive")
    shapes = {"small": (30, 60, 70), "middle": (61, 130, 150), "wide": (36, 170, 330)}
    for seed, (name, shape) in enumerate(shapes.items()):
        sitk.WriteImage(make_body(shape, seed=seed), str(folder / f"{name}.nii.gz"))
    store = folder.parent / f"{folder.name}_store"
    assert preprocess([str(folder), str(store), "-np", "1"]) == 0
    return store


@pytest.fixture(scope="module")
def unbroken(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], Path]:
    """Finds a finished run of some flags; each is made once."""
    runs = {}

    def run(flags: list[str]) -> Path:
        key = tuple(flags)
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("runs") / "run"
            assert pretrain([str(small_store), str(runs[key]), *flags]) == 0
        return runs[key]

    return run


@pytest.fixture(scope="session")
def with_mount() -> Callable[[str, Path, list[str]], list[str]]:
    """Makes a command run with a file system of its own at a folder; no other process sees it, and it ends with it."""
    trial = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(trial, capture_output=True).returncode != 0:
        pytest.skip("file systems of a test's own need root and unshare")

    def make(what: str, where: Path, words: list[str]) -> list[str]:
        return ["unshare", "-m", "sh", "-c", f'mount {what} "$0" && exec "$@"', str(where), *words]

    return make


@pytest.fixture(scope="session")
def read_only(with_mount: Callable[[str, Path, list[str]], list[str]]) -> Callable[[Path, list[str]], list[str]]:
    """Makes a command find a folder read-only, even as root."""

    def make(folder: Path, words: list[str]) -> list[str]:
        remount = ["sh", "-c", 'mount -o remount,bind,ro "$0" && exec "$@"', str(folder), *words]
        return with_mount(f'--bind "{folder}"', folder, remount)

    return make
