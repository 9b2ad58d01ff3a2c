"""The demo's steps: its data, then the same commands as for a user's own data."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_cads.demo.folder import DATASET_ID, DATASET_NAME, DemoFolder
from nnunetv2_cads.demo.torsos.datasets import write_archive, write_nnunet_dataset
from nnunetv2_cads.demo.torsos.torso import TorsoConfig

COMMANDS = (
    "cads_preprocess",
    "cads_pretrain",
    "nnUNetv2_plan_and_preprocess",
    "nnUNetv2_train",
    "nnUNetv2_predict",
    "nnUNetv2_evaluate_folder",
)

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
    """How much of everything."""

    unlabelled: int
    labelled: int
    held_out: int
    torso: TorsoConfig
    trainer: str
    pretrain_flags: tuple[str, ...] = ()


FULL = DemoSize(16, 16, 4, TorsoConfig(), "nnUNetTrainerCADS_demo")
QUICK = DemoSize(
    unlabelled=2,
    labelled=3,
    held_out=2,
    torso=TorsoConfig(body_scale=0.4, slice_spacing_mm=(5.5, 6.0), pixel_spacing_mm=(5.5, 6.0)),
    trainer="nnUNetTrainerCADS_demo_quick",
    pretrain_flags=("--epochs", "2", "--epoch-samples", "8", "--batch-size", "4"),
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


def command_steps(folder: DemoFolder, size: DemoSize, device: str) -> Iterator[Step]:
    """The commands in their order. Each is built only when it is due, since it may have to resume its own work."""
    yield Step(
        "preprocess",
        "Resample the unlabelled CT to 1 mm and make a radiograph of each",
        ("cads_preprocess", str(folder.archive), str(folder.store)),
    )
    yield Step(
        "pretrain",
        "Pre-train the encoder on them, without labels",
        (
            *("cads_pretrain", str(folder.store), str(folder.run)),
            *(("--c",) if (folder.run / "config.json").exists() else ("--preset", "demo", *size.pretrain_flags)),
            *("--device", device),
        ),
    )
    yield Step(
        "plan",
        "Plan and preprocess the labelled torsos",
        (
            *("nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-c", "3d_fullres"),
            *("-gpu_memory_target", "0.2"),  # GB: patches that two cores train on in seconds
            *("-npfp", "1", "-np", "1"),
        ),
        folder.nnunet_variables(),
    )
    yield Step(
        "train",
        "Fine-tune PVT-UNet from the encoder",
        (
            *("nnUNetv2_train", str(DATASET_ID), "3d_fullres", "0", "-tr", size.trainer, "-device", device),
            *(("--c",) if _has_checkpoint(folder, size.trainer) else ()),
        ),
        {**folder.nnunet_variables(), "nnUNet_cads_encoder": str(folder.encoder.absolute())},
        {**FEW_CORES, "nnUNet_n_proc_DA": "0"},  # augmentation takes a fiftieth of a step: a worker would not pay
    )
    yield Step(
        "predict",
        "Segment torsos that no training has seen",
        (
            *("nnUNetv2_predict", "-i", str(folder.dataset / "imagesTs"), "-o", str(folder.predictions)),
            *("-d", str(DATASET_ID), "-c", "3d_fullres", "-f", "0", "-tr", size.trainer, "-device", device),
            *("-npp", "1", "-nps", "1"),
        ),
        folder.nnunet_variables(),
    )
    yield Step(
        "evaluate",
        "Compare the segmentations with the truth",
        (
            *("nnUNetv2_evaluate_folder", str(folder.truths), str(folder.predictions)),
            *("-djfile", str(folder.predictions / "dataset.json"), "-pfile", str(folder.predictions / "plans.json")),
            *("-np", "1"),
        ),
    )


def _has_checkpoint(folder: DemoFolder, trainer: str) -> bool:
    results: Path = folder.nnunet("results") / folder.dataset.name / f"{trainer}__nnUNetPlans__3d_fullres" / "fold_0"
    return any(results.glob("checkpoint_*.pth"))
