"""`cads_compare`: trains, from several starts and on few labelled cases, and says what each start adds to Dice."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_cads.comparison.arms import CADS, KNOWN, SCRATCH, make_arms
from nnunetv2_cads.comparison.checks import check_arms, check_device, check_leaks
from nnunetv2_cads.comparison.dataset import Dataset, open_dataset, patients_of, read_test_cases
from nnunetv2_cads.comparison.design import Design, Training, read_design
from nnunetv2_cads.comparison.estimate import estimate
from nnunetv2_cads.comparison.folder import ComparisonFolder
from nnunetv2_cads.comparison.report import write_report
from nnunetv2_cads.comparison.split import TEST_SHARE, draw_test_cases
from nnunetv2_cads.comparison.work import describe, do_trainings, share_of
from nnunetv2_cads.nnunet_version import require_nnunet
from pretraining.system.command import positive_int, run_command
from pretraining.system.errors import UserError
from pretraining.system.signals import stop_signals_collected

DESCRIPTION = """Does a pre-trained encoder help on your labelled data, and by how much?

Trains from random weights and from the encoders you give, with few labelled cases and several seeds, segments cases
that are held out of all trainings, and writes OUT/report.html. Give the same command again to resume, or with more
--arms, --labels or --seeds to go on. Start it several times, on several GPUs or machines that share OUT, to share the
work."""


BUDGETS = (1, 2, 4, 8)
"""Where --labels is not given, as far as there are cases."""


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
    dataset = open_dataset(arguments.d, arguments.p, arguments.c)
    design = _design(arguments, dataset, folder)
    check_arms(design, dataset)
    if arguments.store:
        check_leaks(design, dataset, arguments.store)
    share = share_of(design, arguments.part, arguments.parts)
    if arguments.dry_run:
        return _list_trainings(folder, design, share)
    if not arguments.report:
        check_device(arguments.device)
    if not arguments.estimate:
        _claim(folder, design)
    with stop_signals_collected("stopping; the same command resumes at the last checkpoint") as received:
        if arguments.estimate:
            return estimate(folder, design, arguments.device, received)
        failed = [] if arguments.report else do_trainings(folder, design, share, arguments.device, received)
    answer = write_report(folder, design, dataset, not arguments.no_images)
    sys.stdout.write("\n".join([*answer, f"report: {folder.root / 'report.html'}", ""]))
    if received:
        return 128 + received[0]
    return int(bool(failed))


def _design(arguments: argparse.Namespace, dataset: Dataset, folder: ComparisonFolder) -> Design:
    """What the flags ask for, joined with what OUT already holds."""
    cases = dataset.cases()
    patients = patients_of(cases, arguments.patient_pattern, arguments.patient_table)
    budgets = tuple(
        sorted(set(arguments.labels or (n for n in BUDGETS if n == 1 or n <= (1 - TEST_SHARE) * len(cases))))
    )
    test = read_test_cases(arguments.test, cases) if arguments.test else draw_test_cases(patients, max(budgets))
    shared = {patients[case] for case in test} & {patients[case] for case in cases if case not in test}
    if shared:
        raise UserError(f"{arguments.test}: patient {min(shared)} has other cases, too; name all cases of a patient")
    arms = make_arms(arguments.arms, arguments.encoder)
    if folder.root.is_file():
        raise UserError(f"{folder.root}: is a file; choose another OUT")
    if folder.root.exists() and not folder.design.exists() and any(folder.root.iterdir()):
        raise UserError(f"{folder.root}: exists and holds no comparison; choose another OUT")
    earlier = read_design(folder.design) if folder.design.exists() else None
    if earlier and not arguments.test:
        test = earlier.test
    design = Design(
        dataset=dataset.name,
        plans=dataset.plans_name,
        configuration=dataset.configuration,
        patients=patients,
        test=tuple(test),
        arms=arms,
        budgets=budgets,
        seeds=arguments.seeds,
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        mirroring=not arguments.no_mirroring,
        amp=arguments.amp,
    )
    try:
        return design.extended(earlier) if earlier else design
    except UserError as error:
        raise UserError(f"{folder.root}: {error}") from error


def _list_trainings(folder: ComparisonFolder, design: Design, share: Sequence[Training]) -> int:
    for training in share:
        state = "done" if folder.result(training).exists() else "to do"
        cases = ", ".join(design.learnt_cases(training.budget, training.seed))
        sys.stdout.write(f"{describe(training)}: {state}; learns from {cases}\n")
    sys.stdout.write(f"test cases: {', '.join(design.test)}\n")
    return 0


def _claim(folder: ComparisonFolder, design: Design) -> None:
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder.root}: cannot be made ({error.strerror}); choose another OUT") from error
    design.write(folder.design)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cads_compare",
        usage="cads_compare OUT -d ID --encoder FILE [flags]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the comparison")
    parser.add_argument("-d", metavar="ID", type=positive_int, required=True, help="dataset, planned and preprocessed")
    parser.add_argument("-p", metavar="PLANS", help="default: nnUNetCADSPlans, or nnUNetPlans where there are none")
    parser.add_argument("-c", metavar="CONFIGURATION", default="3d_fullres", help="default: 3d_fullres")
    parser.add_argument("-device", choices=("cuda", "cpu"), default="cuda", help="cuda (default) or cpu")
    parser.add_argument(
        "--arms",
        metavar="ARM",
        nargs="+",
        default=[],
        help=f"{', '.join(KNOWN)}, or the name of a trainer that nnU-Net finds; {SCRATCH} and each --encoder are arms "
        "without being named",
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
    parser.add_argument("--seeds", metavar="N", type=positive_int, default=3, help="trainings of each arm and budget")
    parser.add_argument("--epochs", metavar="N", type=positive_int, default=100, help="of each training (default: 100)")
    parser.add_argument("--iterations", metavar="N", type=positive_int, default=250, help="of an epoch (default: 250)")
    parser.add_argument("--test", metavar="FILE", type=Path, help="names of the test cases, one in a line")
    patients = parser.add_mutually_exclusive_group()
    patients.add_argument("--patient-pattern", metavar="REGEX", help="its first group is the patient in a case's name")
    patients.add_argument("--patient-table", metavar="CSV", type=Path, help="columns case and patient")
    parser.add_argument("--store", metavar="STORE", type=Path, help="of the pre-training: no test case may be in it")
    parser.add_argument("--no-mirroring", action="store_true", help="for labels that differ between left and right")
    parser.add_argument("--amp", choices=("none", "bf16"), default="none", help="on the CPU; on GPUs nnU-Net's own")
    parser.add_argument("--part", metavar="I", type=int, default=0, help="do every --parts'th training, from this one")
    parser.add_argument("--parts", metavar="N", type=positive_int, default=1, help="for job arrays")
    parser.add_argument("--estimate", action="store_true", help="time a few steps of each arm and report hours")
    parser.add_argument("--dry-run", action="store_true", help="list the trainings and cases, and do nothing")
    parser.add_argument("--report", action="store_true", help="write the report of what is finished, and train nothing")
    parser.add_argument("--no-images", action="store_true", help="leave pictures of cases out of the report")
    return parser


if __name__ == "__main__":
    sys.exit(main())
