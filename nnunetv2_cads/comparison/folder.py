"""The folder OUT of a comparison, and in it nnU-Net's folders of each training, which leave the user's own alone."""

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_cads.comparison.dataset import Dataset
from nnunetv2_cads.comparison.design import Design, Training
from nnunetv2_cads.comparison.networks import plans_of_arm
from pretraining.system.files import atomic_path, write_json
from pretraining.system.lock import held_when_free, new_lease

FOLD = 0
"""Each training has folders of its own, with one fold."""
LINKED = ("dataset.json", "dataset_fingerprint.json", "gt_segmentations")
"""Of a preprocessed dataset, beside its data."""


@dataclass(frozen=True)
class ComparisonFolder:
    """Paths below OUT."""

    root: Path

    @property
    def design(self) -> Path:
        return self.root / "comparison.json"

    def held(self) -> AbstractContextManager[None]:
        """Waits for other processes that write design or report, and keeps them waiting while the block runs."""
        return held_when_free(new_lease(self.root / ".comparison.lock", self.root))

    def training(self, training: Training) -> Path:
        """nnU-Net's folders of a training, until it is scored."""
        return self.root / "trainings" / training.name

    def result(self, training: Training) -> Path:
        """What a finished training leaves: scores, curve, cost."""
        return self.root / "results" / f"{training.name}.json"

    def failure(self, training: Training) -> Path:
        """Why a training failed: one line, and then all of it."""
        return self.root / "failed" / f"{training.name}.txt"

    def log(self, training: Training) -> Path:
        """What nnU-Net printed."""
        return self.root / "logs" / f"{training.name}.log"

    def predictions(self, training: Training) -> Path:
        """Segmentations of the held-out cases."""
        return self.root / "predictions" / training.name

    def variables(self, training: Training) -> dict[str, str]:
        """Where nnU-Net finds the folders of a training."""
        folder = self.training(training).absolute()
        return {f"nnUNet_{kind}": str(folder / kind) for kind in ("preprocessed", "results")}


def write_nnunet_folders(folder: ComparisonFolder, design: Design, dataset: Dataset, training: Training) -> Path:
    """Make what nnU-Net reads in a training: links to the preprocessed data, the arm's plans, and the fold.

    The fold's validation cases are the held-out ones: nnU-Net predicts and scores them at the end, and nothing in a
    training depends on them.

    Returns:
        The file of the plans.
    """
    target = folder.training(training) / "preprocessed" / dataset.name
    target.mkdir(parents=True, exist_ok=True)
    for source in (*(dataset.preprocessed / name for name in LINKED), dataset.data_folder):
        link = target / source.name
        if source.exists() and not link.is_symlink():
            link.symlink_to(source.absolute())
    plans = plans_of_arm(dataset, design.arm(training.arm))
    write_json(target / f"{plans['plans_name']}.json", plans)
    fold = {"train": design.learnt_cases(training.budget, training.seed), "val": list(design.test)}
    with atomic_path(target / "splits_final.json") as temporary:
        temporary.write_text(json.dumps([fold]), encoding="utf-8")
    return target / f"{plans['plans_name']}.json"
