"""The demo's steps: its data, then the same commands as for a user's own data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from nnunetv2_cads.demo.folder import DATASET_ID, DATASET_NAME, PRETRAINED, SCRATCH, DemoFolder
from nnunetv2_cads.demo.torsos.datasets import write_archive, write_nnunet_dataset
from nnunetv2_cads.demo.torsos.torso import TorsoConfig

COMMANDS = (
    "cads_preprocess",
    "cads_pretrain",
    "cads_plan_and_preprocess",
    "nnUNetv2_train",
    "nnUNetv2_predict",
    "nnUNetv2_evaluate_folder",
)

PLANS = "nnUNetCADSPlans"
"""What `cads_plan_and_preprocess` calls them."""

FEW_CORES = {
    "nnUNet_def_n_proc": "1",  # nnU-Net would start eight processes for one small image
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait leave their core to others
    # malloc keeps what is freed: on a CPU, a training step takes the same large blocks again and again
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
"""Variables of every command that change only its speed on two cores."""


@dataclass(frozen=True)
class DemoSize:
    """How much of everything; ``length`` is what the trainers' names end in."""

    unlabelled: int
    labelled: int
    held_out: int
    torso: TorsoConfig
    length: str
    pretrain_flags: tuple[str, ...] = ()


FULL = DemoSize(16, 3, 4, TorsoConfig(), "_demo")
QUICK = DemoSize(
    unlabelled=2,
    labelled=3,
    held_out=2,
    torso=TorsoConfig(body_scale=0.4, slice_spacing_mm=(5.5, 6.0), pixel_spacing_mm=(5.5, 6.0)),
    length="_demo_quick",
    pretrain_flags=("--epochs", "2", "--epoch-samples", "8"),
)
"""Everything runs, nothing is learnt."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its log and in the demo's record.
        title: what it does.
        command: the script and its arguments.
        environment: variables that it needs.
        speed: variables that make it faster here.
    """

    name: str
    title: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    speed: Mapping[str, str] = field(default_factory=lambda: FEW_CORES)


def write_data(folder: DemoFolder, size: DemoSize, seed: int) -> None:
    """Write the unlabelled archive and the labelled dataset; one labelled case is kept for nnU-Net's validation."""
    write_archive(folder.archive, size.unlabelled, size.torso, seed)
    write_nnunet_dataset(folder.nnunet("raw"), DATASET_ID, DATASET_NAME, size.labelled, size.held_out, size.torso, seed)
    cases = sorted(path.name.removesuffix(".nii.gz") for path in (folder.dataset / "labelsTr").glob("*.nii.gz"))
    splits = [{"train": cases[:-1], "val": cases[-1:]}]
    (folder.dataset / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")


def command_steps(folder: DemoFolder, size: DemoSize, device: str) -> list[Step]:
    """The commands in their order. What an earlier call has begun is resumed."""
    return [
        Step(
            "preprocess",
            "Resample the unlabelled CT to 3 mm and make a radiograph of each",
            ("cads_preprocess", str(folder.archive), str(folder.store), "--spacing-mm", "3"),
        ),
        Step(
            "pretrain",
            "Pre-train the encoder on them, without labels",
            (
                *("cads_pretrain", str(folder.store), str(folder.run)),
                *(("--c",) if (folder.run / "config.json").exists() else ("--preset", "demo", *size.pretrain_flags)),
                *("--device", device),
            ),
        ),
        Step(
            "plan",
            "Plan and preprocess the labelled torsos, for what the encoder has seen",
            (
                *("cads_plan_and_preprocess", "-d", str(DATASET_ID), "-c", "3d_fullres"),
                *("-gpu_memory_target", "1"),  # GB: patches that two cores train on in seconds
                *("-npfp", "1", "-np", "1"),
            ),
            {**folder.nnunet_variables(), "nnUNet_cads_encoder": str(folder.encoder.absolute())},
        ),
        *_training("Train PVT-UNet from random weights", folder, SCRATCH, size.length, device),
        *_training("Train PVT-UNet from the encoder", folder, PRETRAINED, size.length, device),
    ]


def _training(title: str, folder: DemoFolder, start: str, length: str, device: str) -> list[Step]:
    """A training and the scores of what it segments, alike for both starts."""
    trainer = f"nnUNetTrainerCADS{start}{length}"
    variables, predictions = folder.nnunet_variables(), folder.predictions(start)
    of_training = ("-tr", trainer, "-p", PLANS)
    encoder = {"nnUNet_cads_encoder": str(folder.encoder.absolute())} if start == PRETRAINED else {}
    results = folder.nnunet("results") / folder.dataset.name / f"{trainer}__{PLANS}__3d_fullres" / "fold_0"
    return [
        Step(
            f"train{start}",
            title,
            (
                *("nnUNetv2_train", str(DATASET_ID), "3d_fullres", "0", *of_training, "-device", device),
                *(("--c",) if any(results.glob("checkpoint_*.pth")) else ()),
            ),
            {**variables, **encoder},
            {**FEW_CORES, "nnUNet_n_proc_DA": "0"},  # augmentation takes a fiftieth of a step: a worker would not pay
        ),
        Step(
            f"predict{start}",
            "Segment torsos that no training has seen",
            (
                *("nnUNetv2_predict", "-i", str(folder.dataset / "imagesTs"), "-o", str(predictions)),
                *("-d", str(DATASET_ID), "-c", "3d_fullres", "-f", "0", *of_training, "-device", device),
                *("-npp", "1", "-nps", "1"),
            ),
            variables,
        ),
        Step(
            f"evaluate{start}",
            "Compare the segmentations with the truth",
            (
                *("nnUNetv2_evaluate_folder", str(folder.truths), str(predictions)),
                *("-djfile", str(predictions / "dataset.json"), "-pfile", str(predictions / "plans.json")),
                *("-np", "1"),
            ),
        ),
    ]
