"""`cads_plan_and_preprocess`: nnU-Net's command of that name, with our planner.

nnU-Net looks for planners only in its own package, so its functions are called here with our class.
"""

import argparse
import functools
import logging
import shlex
import shutil
import sys
from pathlib import Path

import nnunetv2
from nnunetv2.experiment_planning.plan_and_preprocess_api import (
    extract_fingerprints,
    plan_experiment_dataset,
    preprocess,
)
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name, find_candidate_datasets
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from nnunetv2_cads.encoder_file.read import ENCODER_VARIABLE, EncoderFileError, record_to_plan_for
from nnunetv2_cads.experiment_planning.planner import PLANS_NAME, CADSPlanner
from nnunetv2_cads.experiment_planning.raw_dataset import check_labels, misplaced_text, read_description
from nnunetv2_cads.nnunet_version import require_nnunet
from pretraining.system.command import positive_int, positive_number, run_command
from pretraining.system.errors import UserError

logger = logging.getLogger(__name__)

LEAST_ROOM = 1_000_000
"""Bytes; with less left on the disk, this is taken as the cause of any error."""

PROCESSES = {"2d": 8, "3d_fullres": 4, "3d_lowres": 8}
"""nnU-Net's default numbers of processes."""

CONFIGURATIONS = (*PROCESSES, "3d_cascade_fullres")

TRAINERS = {"PVT-UNet": "nnUNetTrainerCADS", "CoTr": "nnUNetTrainerCoTr"}
"""The trainer of each network that can be planned for."""


def main(argv: list[str] | None = None) -> int:
    """Extract fingerprints, plan and preprocess; returns the exit code: 0 done, 2 not, with one sentence."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    require_nnunet()
    _check(arguments)
    try:
        _plan_and_preprocess(arguments)
    except (OSError, RuntimeError) as error:
        # ENOSPC is lost in worker processes and blosc2, and shutil names the source file: look at the free space
        folder = Path(nnUNet_preprocessed.get())
        if _is_full(folder):
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder}: the disk is full ({reason}); make room and start again") from error
        if not isinstance(error, OSError) or error.filename is None:
            raise
        raise UserError(
            f"{error.filename}: {error.strerror}; make it readable and writable, then start again"
        ) from error
    return 0


def _is_full(folder: Path) -> bool:
    """Whether the disk that a folder is on, or would be made on, has no room left."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    total, _, free = shutil.disk_usage(existing)
    return total > 0 and free < LEAST_ROOM  # a file system without a size, like /proc, cannot be full


def _plan_and_preprocess(arguments: argparse.Namespace) -> None:
    progress = not arguments.no_pbar
    try:
        record = record_to_plan_for()
    except EncoderFileError as error:
        raise UserError(f"{ENCODER_VARIABLE} names the encoder to plan for: {error}") from error
    for dataset in arguments.d:
        folder = Path(nnUNet_raw.get()) / convert_id_to_dataset_name(dataset)
        if misplaced := misplaced_text(check_labels(folder, arguments.npfp)):
            logger.warning("warning: %s", misplaced)
        if arguments.verify_dataset_integrity:
            _verify_integrity(folder, arguments.npfp)
    extract_fingerprints(
        arguments.d,
        arguments.fpe,
        arguments.npfp,
        False,
        arguments.clean,
        arguments.verbose,
        show_progress_bar=progress,
    )
    spacing = record.spacing_mm if arguments.pretraining_spacing else arguments.overwrite_target_spacing
    planner = functools.partial(
        CADSPlanner,
        nnunet_normalization=arguments.nnunet_normalization,
        pretraining=record,
        network=arguments.network,
    )
    for dataset in arguments.d:
        _, plans_name = plan_experiment_dataset(
            dataset,
            planner,
            arguments.gpu_memory_target,
            arguments.preprocessor_name,
            spacing,
            arguments.overwrite_plans_name,
        )
    if not arguments.no_pp:
        processes = arguments.np or [PROCESSES.get(name, 4) for name in arguments.c]
        preprocess(arguments.d, plans_name, arguments.c, processes, arguments.verbose, show_progress_bar=progress)
        configuration = "3d_fullres" if "3d_fullres" in arguments.c else arguments.c[0]
        of = [str(arguments.d[0]), configuration, "0", "-tr", TRAINERS[arguments.network], "-p", plans_name]
        sys.stdout.write(f"train with: {shlex.join(['nnUNetv2_train', *of])}\n")


def _verify_integrity(folder: Path, processes: int) -> None:
    """nnU-Net's own check, which prints what it finds."""
    try:
        verify_dataset_integrity(str(folder), processes)
    except (AssertionError, RuntimeError, FileNotFoundError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{folder}: {reason}; correct what nnU-Net printed above and start again") from error


def _check(arguments: argparse.Namespace) -> None:
    """Refuse arguments and datasets that would fail later.

    Raises:
        UserError: a folder is not set, a dataset or class does not exist, or numbers do not fit together.
    """
    for folder in (nnUNet_raw, nnUNet_preprocessed):
        if not folder.is_set():
            raise UserError(f"{folder.env_var_name} is not set; export {folder.env_var_name}=/path/to/folder")
    for dataset in arguments.d:
        names = list(find_candidate_datasets(dataset))
        if not names:
            raise UserError(
                f"-d {dataset}: no folder Dataset{dataset:03d}_NAME in {nnUNet_raw.get()} (nnUNet_raw); put it "
                "there, or give another ID"
            )
        if len(names) > 1:
            raise UserError(
                f"-d {dataset}: nnU-Net's folders have several datasets of this ID ({', '.join(sorted(names))}); "
                "rename or remove all but one"
            )
        read_description(Path(nnUNet_raw.get()) / names[0])
    for flag, name, package in (
        ("-fpe", arguments.fpe, "experiment_planning"),
        ("-preprocessor_name", arguments.preprocessor_name, "preprocessing"),
    ):
        if recursive_find_python_class(str(Path(nnunetv2.__path__[0]) / package), name, f"nnunetv2.{package}") is None:
            raise UserError(f"{flag} {name}: nnU-Net has no such class in nnunetv2.{package}; leave {flag} out")
    if arguments.np and len(arguments.np) not in (1, len(arguments.c)):
        raise UserError(f"-np {arguments.np}: give one number, or one for each of -c {' '.join(arguments.c)}")
    if arguments.overwrite_target_spacing and len(arguments.overwrite_target_spacing) != 3:
        raise UserError(f"-overwrite_target_spacing {arguments.overwrite_target_spacing}: three numbers are needed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cads_plan_and_preprocess",
        description="nnUNetv2_plan_and_preprocess for PVT-UNet: its patch and batch sizes, and the intensities that "
        "CADS pre-training saw. Train and predict with `-p nnUNetCADSPlans`. Single-dash flags are nnU-Net's.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-d", metavar="ID", nargs="+", type=int, required=True, help="dataset IDs")
    add(
        "-c",
        nargs="+",
        default=list(PROCESSES),
        choices=CONFIGURATIONS,
        help="configurations to preprocess; those that are not in the plans are skipped",
    )
    add("-np", type=positive_int, nargs="+", help="processes, for all configurations or for each (default: 8 4 8)")
    add("-fpe", default="DatasetFingerprintExtractor", help="nnU-Net's class that extracts the fingerprint")
    add("-npfp", type=positive_int, default=8, help="processes that extract the fingerprint (default: %(default)s)")
    add("--verify_dataset_integrity", action="store_true", help="check the images, too; once per dataset is enough")
    add("--no_pp", action="store_true", help="plan only")
    add("--clean", action="store_true", help="extract the fingerprint again; needed after the dataset has changed")
    add("-gpu_memory_target", metavar="GB", type=positive_number, help="GPU memory to plan for (default: 8)")
    add("-preprocessor_name", default="DefaultPreprocessor", help="a preprocessor class of nnU-Net's")
    spacing = parser.add_mutually_exclusive_group()
    spacing.add_argument(
        "-overwrite_target_spacing",
        metavar="MM",
        nargs="+",
        type=positive_number,
        help="target spacing of 3d_fullres, three numbers in the images' own axis order",
    )
    spacing.add_argument(
        "--pretraining-spacing",
        action="store_true",
        help=f"target spacing as in pre-training: of the encoder file that {ENCODER_VARIABLE} names, or 1 mm",
    )
    add("-overwrite_plans_name", metavar="NAME", help=f"name of the plans, to keep several (default: {PLANS_NAME})")
    add("--network", default="PVT-UNet", choices=TRAINERS, help="whose memory to plan for (default: %(default)s)")
    add("--nnunet-normalization", action="store_true", help="nnU-Net's own CT normalisation instead of pre-training's")
    add("--verbose", action="store_true", help="print more")
    add("--no_pbar", action="store_true", help="no progress bars")
    return parser


if __name__ == "__main__":
    sys.exit(main())
