"""The study's data: an unlabelled archive and its store, and labelled tasks in nnU-Net's raw format.

Synthetic torsos are scaled so that their voxels are 1 mm: pre-training at 1 mm then sees organs
at the size and resolution at which fine-tuning shows them. One voxel is 4 mm of an adult.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from nnunetv2_cads.demo.folder import WorkingFolder
from nnunetv2_cads.demo.torsos.datasets import write_archive, write_nnunet_dataset
from nnunetv2_cads.demo.torsos.torso import TorsoConfig
from pretraining.preprocess import Part, preprocess

TORSO_DATASET_ID, TORSO_DATASET_NAME = 801, "Torsos"

HARD = TorsoConfig(
    body_scale=0.25,
    slice_spacing_mm=(1.0, 1.0),
    pixel_spacing_mm=(1.0, 1.0),
    organ_contrast_hu=(100.0, 160.0),
    blood_contrast_hu=(20.0, 120.0),
    noise_hu=(15.0, 35.0),
    variation=1.5,
)
"""Harder than the demo's in contrast, noise and variation; as wide as 1.7 patches, which a short training can learn."""


@dataclass(frozen=True)
class DataSize:
    """How much of everything."""

    archive: int = 100
    labelled: int = 8
    held_out: int = 12
    probe_scans: int = 32
    torso: TorsoConfig = field(default_factory=lambda: HARD)
    shown_part: tuple[float, float] = (0.35, 0.7)
    """Of the body, in scans without labels: an archive's scans are of the chest or the abdomen, not of all."""

    @property
    def archive_torso(self) -> TorsoConfig:
        """How unlabelled torsos look."""
        return replace(self.torso, shown_part=self.shown_part)


@dataclass(frozen=True)
class StudyFolder(WorkingFolder):
    """Where the study keeps its files below ``root``."""

    @property
    def probe_store(self) -> Path:
        """A store of scans that nothing is trained on, for retrieval."""
        return self.root / "probe_store"

    @property
    def runs(self) -> Path:
        """Pre-trainings, one folder each."""
        return self.root / "runs"

    @property
    def finetuned(self) -> Path:
        """Fine-tunings: one JSON file of records each."""
        return self.root / "finetuned"


def make_archive(folder: StudyFolder, size: DataSize, ct_dir: Path | None, seed: int = 0) -> None:
    """Write the archive and its store; what exists is kept.

    Args:
        folder: of the study.
        size: numbers of scans.
        ct_dir: a folder of real CT scans, which join the archive; its subfolders (the labelled ones) do not.
        seed: of the torsos.
    """
    write_archive(folder.archive, size.archive, size.archive_torso, seed)
    for scan in sorted(ct_dir.glob("*.nii.gz")) if ct_dir else ():
        link = folder.archive / scan.name
        if not link.exists():
            link.symlink_to(scan.absolute())
    preprocess(folder.archive, folder.store, 1, Part(0, 1))


def make_probe_store(folder: StudyFolder, size: DataSize) -> None:
    """Write the scans that only probes see, and their store; what exists is kept."""
    archive = folder.root / "probe_archive"
    write_archive(archive, size.probe_scans, size.archive_torso, seed=1)
    preprocess(archive, folder.probe_store, 1, Part(0, 1))


def make_torso_task(folder: StudyFolder, size: DataSize, seed: int = 0) -> Path:
    """Write the labelled torsos as an nnU-Net raw dataset and return its folder; what exists is kept."""
    raw = folder.nnunet("raw")
    return write_nnunet_dataset(
        raw, TORSO_DATASET_ID, TORSO_DATASET_NAME, size.labelled, size.held_out, size.torso, seed
    )
