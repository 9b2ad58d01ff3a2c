"""`cads_compare`: trains, from several starts and on few labelled cases, and says what each start adds to Dice."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_cads.comparison.arms import CADS, KNOWN, RESENC_ARM, SCRATCH
from nnunetv2_cads.comparison.asked import DEFAULTS, ask, claim
from nnunetv2_cads.comparison.checks import check_arms, check_device, check_leaks
from nnunetv2_cads.comparison.design import Design, Training, read_design
from nnunetv2_cads.comparison.estimate import estimate
from nnunetv2_cads.comparison.folder import ComparisonFolder
from nnunetv2_cads.comparison.report import write_report
from nnunetv2_cads.comparison.work import describe, do_trainings, share_of
from nnunetv2_cads.nnunet_version import require_nnunet
from pretraining.system.command import positive_int, run_command
from pretraining.system.errors import UserError
from pretraining.system.signals import stop_signals_collected

DESCRIPTION = """Does a pre-trained encoder help on your labelled data, and by how much?

Trains from random weights and from the encoders you give, with few labelled cases and several seeds, segments cases
that are held out of all trainings, and writes OUT/report.html. `cads_compare OUT` resumes; with more --arms, --labels
or --seeds it goes on with these. Start it several times, on several GPUs or machines that share OUT, to share the
work."""


def main(argv: list[str] | None = None) -> int:
    """`cads_compare OUT -d ID --encoder FILE`; exit code 0: done, 1: some trainings failed, 2: nothing was done."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    require_nnunet()
    if not 0 <= arguments.part < arguments.parts:
        raise UserError(
            f"--part {arguments.part}: must be from 0 to {arguments.parts - 1} for --parts {arguments.parts}"
        )
    folder = ComparisonFolder(arguments.out)
    dataset, design = ask(arguments, folder)
    if not arguments.report:  # what is trained needs no encoder file any more
        check_arms(design, dataset)
    if arguments.store:
        check_leaks(design, dataset, arguments.store)
    if arguments.dry_run:
        return _list_trainings(folder, design, share_of(design, arguments.part, arguments.parts))
    if not arguments.report:
        check_device(arguments.device)
    with stop_signals_collected("stopping; the same command resumes at the last checkpoint") as received:
        if arguments.estimate:
            return estimate(folder, design, arguments.device, received)
        failed = []
        if not arguments.report:
            design = claim(folder, design)
            share = share_of(design, arguments.part, arguments.parts)
            failed = do_trainings(folder, design, share, arguments.device, received)
    answer = write_report(folder, read_design(folder.design), dataset, not arguments.no_images)
    sys.stdout.write("\n".join([*answer, f"report: {folder.root / 'report.html'}", ""]))
    if received:
        return 128 + received[0]
    return int(bool(failed))


def _list_trainings(folder: ComparisonFolder, design: Design, share: Sequence[Training]) -> int:
    for training in share:
        state = "done" if folder.result(training).exists() else "to do"
        cases = ", ".join(design.learnt_cases(training.budget, training.seed))
        sys.stdout.write(f"{describe(training)}: {state}; learns from {cases}\n")
    sys.stdout.write(f"test cases: {', '.join(design.test)}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cads_compare",
        usage="cads_compare OUT -d ID --encoder FILE [flags]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the comparison")
    parser.add_argument("-d", metavar="ID", type=positive_int, help="dataset, planned and preprocessed")
    parser.add_argument("-p", metavar="PLANS", help="default: nnUNetCADSPlans, or nnUNetPlans where there are none")
    parser.add_argument("-c", metavar="CONFIGURATION", help=f"default: {DEFAULTS['configuration']}")
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cuda", help="cuda (default) or cpu")
    parser.add_argument(
        "--arms",
        metavar="ARM",
        nargs="+",
        default=[],
        help=f"{', '.join(KNOWN)}, or the name of a trainer that nnU-Net finds, such as nnUNetTrainerAdam1en3 "
        f"({RESENC_ARM}Adam1en3: the same with that network); {SCRATCH} and each --encoder are always arms",
    )
    parser.add_argument(
        "--encoder", metavar="FILE", action="append", default=[], help=f"of arm {CADS}; NAME=FILE: of arm NAME"
    )
    parser.add_argument(
        "--labels",
        metavar="N",
        nargs="+",
        type=positive_int,
        help="budgets (default: 1 2 4 8, as far as there are cases)",
    )
    for flag, text in (
        ("--seeds", "trainings of each arm and budget"),
        ("--epochs", "of each training"),
        ("--iterations", "of an epoch"),
    ):
        default = DEFAULTS[flag.removeprefix("--")]
        parser.add_argument(flag, metavar="N", type=positive_int, help=f"{text} (default: {default})")
    parser.add_argument(
        "--set",
        metavar="[ARM:]NAME=VALUE",
        dest="settings",
        nargs="+",
        default=[],
        help="settings of our trainers, such as initial_lr=1e-3; without ARM of all arms that have them",
    )
    parser.add_argument("--test", metavar="FILE", type=Path, help="names of the test cases, one in a line")
    patients = parser.add_mutually_exclusive_group()
    patients.add_argument("--patient-pattern", metavar="REGEX", help="its first group is the patient in a case's name")
    patients.add_argument("--patient-table", metavar="CSV", type=Path, help="columns case and patient")
    parser.add_argument("--store", metavar="STORE", type=Path, help="of the pre-training: no test case may be in it")
    parser.add_argument(
        "--no-mirroring",
        action="store_const",
        const=False,
        dest="mirroring",
        help="for labels that differ between left and right",
    )
    parser.add_argument("--amp", choices=("none", "bf16"), help="on the CPU; on GPUs nnU-Net's own (default: none)")
    parser.add_argument("--part", metavar="I", type=int, default=0, help="do every --parts'th training, from this one")
    parser.add_argument("--parts", metavar="N", type=positive_int, default=1, help="for job arrays")
    parser.add_argument("--estimate", action="store_true", help="time a few steps of each arm and report hours")
    parser.add_argument("--dry-run", action="store_true", help="list the trainings and cases, and do nothing")
    parser.add_argument("--report", action="store_true", help="write the report of what is finished, and train nothing")
    parser.add_argument("--no-images", action="store_true", help="leave pictures of cases out of the report")
    return parser


if __name__ == "__main__":
    sys.exit(main())
