"""One tiny nnU-Net project for the whole session, made with nnU-Net's real commands from real NIfTI files."""

import contextlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunetv2_cads.encoder_file.record import EncoderRecord
from nnunetv2_cads.encoder_file.write import write_encoder_file
from nnunetv2_cads.network_architecture import PVTv2Encoder

os.environ.setdefault("nnUNet_def_n_proc", "1")  # nnU-Net reads it when it is imported, for `call`
REPOSITORY = Path(__file__).parents[2]
TRAINERS_OF_A_USER = """
import os

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_cads.training.cotr_trainer import nnUNetTrainerCoTr, nnUNetTrainerCoTr_AdamW
from nnunetv2_cads.training.trainer import nnUNetTrainerCADS


class Stops:
    def on_epoch_end(self):
        super().on_epoch_end()
        if self.current_epoch == int(os.environ.get("STOP_BEFORE_EPOCH", -1)):
            raise SystemExit("stopped by the test")


class TinyTrainerCADS(Stops, nnUNetTrainerCADS):
    settings = {
        "num_epochs": 3, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1, "save_every": 1,
    }

ONE_STEP = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}


class OneStepTrainerCADS(nnUNetTrainerCADS):
    settings = {**ONE_STEP, "mirroring": False}


class TwoStepTrainerCoTr(Stops, nnUNetTrainerCoTr):
    settings = {**ONE_STEP, "num_epochs": 2, "save_every": 1, "mirroring": False, "sampling_order": "published"}


class OneStepTrainerCoTr_AdamW(nnUNetTrainerCoTr_AdamW):
    settings = {**ONE_STEP, "mirroring": False}


class OneStepStockTrainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        vars(self).update(ONE_STEP)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
        *others, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = None
        return *others, None
"""


Finished = subprocess.CompletedProcess[str]


def run(command: list[object], **options: object) -> Finished:
    """Run a command to its end, with its output as text."""
    return subprocess.run(
        [str(word) for word in command], encoding="utf-8", capture_output=True, timeout=300, **options
    )


@dataclass(frozen=True)
class VirtualEnvironment:
    """A new virtual environment that sees what is installed here, but not this project's checkout."""

    root: Path

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    def files(self) -> set[Path]:
        return {path for path in self.root.rglob("*") if path.is_file()}

    def pip(self, *arguments: object) -> None:
        done = run([self.python, "-m", "pip", *arguments], env=_clean_environment(), cwd=self.root)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, *what: object) -> None:
        """Install a wheel, or ``-e`` and a source tree, without its dependencies and without a network."""
        self.pip("install", "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", *what)

    def evaluate(self, code: str, **changes: str) -> str:
        """Standard output of a new interpreter that runs ``code`` in a folder without the project."""
        done = run([self.python, "-c", code], env=_clean_environment() | changes, cwd=self.root)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def _clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("nnUNet_", "PYTHON"))}


@dataclass(frozen=True)
class NnunetProject:
    """Folders and files of the project: dataset 1 with five CTs, planned for all, preprocessed for 3d_fullres."""

    root: Path
    encoder_file: Path

    @property
    def results(self) -> Path:
        return self.root / "results" / "Dataset001_Blobs"

    @property
    def trainer_folder(self) -> Path:
        return self.root / "my_trainers"

    def environment(self, **changes: str | None) -> dict[str, str]:
        """A fresh shell's: nnU-Net's three folders and its numbers of processes; None removes a variable."""
        folders = {f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")}
        small = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
        merged = {**_clean_environment(), **folders, **small, **changes}
        return {name: value for name, value in merged.items() if value is not None}

    def run(self, python: Path | str, command: str, *arguments: object, **changes: str | None) -> Finished:
        """Run one of nnU-Net's console scripts with ``python``, in `environment` with the ``changes``."""
        script = shutil.which(command, path=sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"])
        return run([python, script, *arguments], env=self.environment(**changes), cwd=self.root)

    def call(self, command: str | Callable, *arguments: object, **changes: str | None) -> str:
        """Run one of nnU-Net's commands, or an entry function, in this process; returns what it printed.

        The same code as `run`, without seconds of imports: worker processes come from a server that has imported them.
        """
        scripts = importlib.metadata.entry_points(group="console_scripts")
        entry = command if callable(command) else scripts[command].load()
        environment = {"nnUNet_extTrainer": str(REPOSITORY / "nnunetv2_cads" / "training" / "discovery"), **changes}
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["nnunetv2.training.nnUNetTrainer.nnUNetTrainer"])
        output = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
            for name, value in self.environment(**environment).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", [str(command), *map(str, arguments)])
            patch.setattr(multiprocessing, "get_context", lambda method=None: server)
            patch.setattr(multiprocessing, "cpu_count", lambda: 1)  # threads of torch; more wait for each other here
            threads = torch.get_num_threads()
            try:
                assert not entry()
            finally:
                torch.set_num_threads(threads)  # a later test may compare with another process bit for bit
        return output.getvalue()


def _write_case(folder: Path, name: str, rng: np.random.Generator) -> None:
    """A body of water with two blobs of 100 and 250 HU in air, 3 x 1.5 x 1.5 mm."""
    shape = (20, 40, 40)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    labels = np.zeros(shape, np.uint8)
    for label in (1, 2):
        center = rng.uniform((5, 10, 10 + 12 * (label - 1)), (15, 30, 16 + 12 * (label - 1)))
        distance = (((grid - center[:, None, None, None]) / np.array((4, 6, 6))[:, None, None, None]) ** 2).sum(0)
        labels[distance < 1] = label
    body = ((grid[1:] - 20) ** 2).sum(0) < 18**2
    image = np.select([labels == 1, labels == 2, body], [100, 250, 0], -1000) + rng.normal(0, 20, shape)
    for array, path in ((image.astype(np.int16), f"imagesTr/{name}_0000"), (labels, f"labelsTr/{name}")):
        volume = sitk.GetImageFromArray(array)
        volume.SetSpacing((1.5, 1.5, 3.0))
        sitk.WriteImage(volume, str(folder / f"{path}.nii.gz"))


def _write_dataset(folder: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(5):
        _write_case(folder, f"case_{i}", rng)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "soft": 1, "hard": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def _write_encoder(path: Path) -> None:
    """A file as cads_export writes it, of random weights that are not the initial ones."""
    torch.manual_seed(1)
    state = {key: value + 0.01 for key, value in PVTv2Encoder().state_dict().items()}
    write_encoder_file(path, state, EncoderRecord(spacing_mm=(1.0, 1.0, 1.0), clip_hu=(-1024, 1024)))


@pytest.fixture(scope="session")
def nnunet_project(tmp_path_factory: pytest.TempPathFactory) -> NnunetProject:
    """The project, planned and preprocessed. nnU-Net names result folders by trainer: one trainer per test."""
    root = tmp_path_factory.mktemp("nnunet_project")
    project = NnunetProject(root, root / "cads_encoder.pth")
    _write_dataset(root / "raw" / "Dataset001_Blobs")
    _write_encoder(project.encoder_file)
    project.trainer_folder.mkdir()
    (project.trainer_folder / "my_trainers.py").write_text(TRAINERS_OF_A_USER)
    arguments = ("nnUNetv2_plan_and_preprocess", "-d", 1, "-c", "3d_fullres", "-np", 1, "-npfp", 1)
    done = project.run(sys.executable, *arguments, nnUNet_n_proc_DA="1")  # the planner refuses 0
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture(scope="session")
def make_virtual_environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], VirtualEnvironment]:
    """Makes new virtual environments; the dependencies come in by path, since they are gigabytes."""
    here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]

    def make() -> VirtualEnvironment:
        environment = VirtualEnvironment(tmp_path_factory.mktemp("venv"))
        venv.create(environment.root)
        site_packages = environment.evaluate("import sysconfig; print(sysconfig.get_path('purelib'))")
        (Path(site_packages) / "installed_here.pth").write_text("\n".join(here) + "\n")
        return environment

    return make


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what packaging reads, so that no build leaves files in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("nnunetv2_cads", "pretraining"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="session")
def wheel(source_tree: Path, make_virtual_environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    builder = make_virtual_environment()
    builder.pip("wheel", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, source_tree)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel: Path, make_virtual_environment) -> VirtualEnvironment:
    """A virtual environment with the wheel installed."""
    environment = make_virtual_environment()
    environment.install(wheel)
    return environment
