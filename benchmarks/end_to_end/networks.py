"""A training and a prediction by nnU-Net's own commands: PVT-UNet beside PlainConvUNet and ResEnc-M."""

import contextlib
import io
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tables import in_new_process, markdown_table

from end_to_end.measured import Measured, measure
from nnunetv2_cads.demo.torsos.datasets import write_nnunet_dataset
from nnunetv2_cads.demo.torsos.torso import TorsoConfig

DATASET_ID, TRAIN_CASES, TEST_CASES, BATCH = 1, 3, 3, 2
CONFIGURATION = "3d_fullres"
NETWORKS = {
    "PlainConvUNet": ("ShortTrainer", "nnUNetPlans"),
    "ResEnc-M": ("ShortTrainer", "nnUNetResEncUNetMPlans"),
    "PVT-UNet": ("ShortTrainerCADS", "nnUNetPlans"),
}
"""Trainer and plans; all plans have the same patch and batch."""
TRAINERS = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_cads.training.trainer import nnUNetTrainerCADS

LENGTH = {{"num_epochs": 1, "num_iterations_per_epoch": {iterations}, "num_val_iterations_per_epoch": 1}}


class ShortTrainer(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device):  # nnU-Net looks at these names
        super().__init__(plans, configuration, fold, dataset_json, device)
        vars(self).update(LENGTH)


class ShortTrainerCADS(nnUNetTrainerCADS):
    settings = {{**LENGTH, "use_pretrained_encoder": False}}
"""
FIRST_TILE, TILES_BEGIN = r"\b[1-9]\d*/\d+ \[", r"\b0/\d+ \["


class Size(NamedTuple):
    """How much is trained and predicted."""

    networks: tuple[str, ...]
    iterations: int
    patch: tuple[int, int, int]
    torso: TorsoConfig


FULL = Size(
    tuple(NETWORKS), 20, (32, 64, 64),
    TorsoConfig(body_scale=0.4, slice_spacing_mm=(3.0, 3.0), pixel_spacing_mm=(1.6, 1.6)),
)  # fmt: skip
QUICK = Size(
    ("PlainConvUNet", "PVT-UNet"), 2, (16, 48, 48),
    TorsoConfig(body_scale=0.4, slice_spacing_mm=(7.8, 7.8), pixel_spacing_mm=(1.9, 1.9)),
)  # fmt: skip


def compare(work: Path, size: Size, rounds: int) -> dict[str, float]:
    """All networks in turns; prints the table.

    Returns:
        Medians over the rounds of the last network's seconds over the first's: of the training, of the prediction, and
        of the prediction up to its first tile.
    """
    folder = work / f"nnunet_{'x'.join(map(str, size.patch))}"
    environment = _prepare(folder, size)
    taken: dict[str, list[tuple[Measured, Measured]]] = {network: [] for network in size.networks}
    for _ in range(rounds):
        shutil.rmtree(environment["nnUNet_results"], ignore_errors=True)
        for network in size.networks:
            train, predict = _train_and_predict(folder, network, environment)
            taken[network].append((train, predict))
            print(f"{network}: training {train.seconds:.1f} s, prediction {predict.seconds:.1f} s", flush=True)
    rows = []
    for network, pairs in taken.items():
        values = [
            (train.seconds, train.cpu_seconds, predict.seconds, predict.cpu_seconds, *_first_tile(predict))
            for train, predict in pairs
        ]
        rows.append([network, *(f"{statistics.median(column):.1f}" for column in zip(*values, strict=True))])
    patch = " x ".join(map(str, size.patch))
    print(
        f"\n{size.iterations} iterations, patch {patch}, batch {BATCH}, {TEST_CASES} cases to predict, {rounds} rounds"
    )
    heads = ["network", "nnUNetv2_train, s", "CPU s", "nnUNetv2_predict, s", "CPU s"]
    print(markdown_table([*heads, "its first tile begins, s", "ends, s"], rows))
    first, last = taken[size.networks[0]], taken[size.networks[-1]]

    def ratio(seconds: Callable[[tuple[Measured, Measured]], float]) -> float:
        return round(statistics.median(seconds(b) / seconds(a) for a, b in zip(first, last, strict=True)), 3)

    return {
        "train": ratio(lambda pair: pair[0].seconds),
        "predict": ratio(lambda pair: pair[1].seconds),
        "first_tile": ratio(lambda pair: _first_tile(pair[1])[1]),
    }


def _first_tile(predict: Measured) -> tuple[float, float]:
    return predict.seconds_to(TILES_BEGIN), predict.seconds_to(FIRST_TILE)


def _prepare(folder: Path, size: Size) -> dict[str, str]:
    """Write the dataset, plan and preprocess it, where that is not done; returns nnU-Net's variables."""
    environment = {
        **{f"nnUNet_{kind}": str((folder / kind).absolute()) for kind in ("raw", "preprocessed", "results")},
        "nnUNet_extTrainer": str((folder / "trainers").absolute()),
        "nnUNet_def_n_proc": "1",
    }
    dataset = write_nnunet_dataset(folder / "raw", DATASET_ID, "Torso", TRAIN_CASES, TEST_CASES, size.torso)
    planner = environment | {"nnUNet_n_proc_DA": "1"}  # which takes no 0
    in_new_process(_plan, dataset, folder / "preprocessed", size.patch, environment=planner).result()
    *train, held_out = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").iterdir())
    splits = folder / "preprocessed" / dataset.name / "splits_final.json"
    splits.write_text(json.dumps([{"train": train, "val": [held_out]}]))
    (folder / "trainers").mkdir(exist_ok=True)
    (folder / "trainers" / "short_trainers.py").write_text(TRAINERS.format(iterations=size.iterations))
    return environment | {"nnUNet_n_proc_DA": "0"}


def _plan(dataset: Path, preprocessed: Path, patch: tuple[int, int, int]) -> None:
    from few_labels.plans import plan_and_preprocess  # loads nnU-Net, which reads its variables then

    with contextlib.redirect_stdout(io.StringIO()):
        plan_and_preprocess(dataset, preprocessed, patch, BATCH)


def _train_and_predict(folder: Path, network: str, environment: Mapping[str, str]) -> tuple[Measured, Measured]:
    """Both commands."""
    trainer, plans = NETWORKS[network]
    common = ("-tr", trainer, "-p", plans, "-device", "cpu")
    images = next((folder / "raw").iterdir()) / "imagesTs"
    train = measure(["nnUNetv2_train", str(DATASET_ID), CONFIGURATION, "0", *common], environment)
    with tempfile.TemporaryDirectory() as predictions:
        places = ("-i", str(images), "-o", predictions, "-d", str(DATASET_ID), "-c", CONFIGURATION, "-f", "0")
        predict = measure(["nnUNetv2_predict", *places, *common, "-npp", "1", "-nps", "1"], environment)
    return train, predict
