"""What `cads_compare` does, from its flags to the report."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from nnunetv2_cads.comparison.asked import ask, claim
from nnunetv2_cads.comparison.checks import check_arms, check_device, check_leaks
from nnunetv2_cads.comparison.design import Design, Training, read_design
from nnunetv2_cads.comparison.estimate import estimate
from nnunetv2_cads.comparison.folder import ComparisonFolder
from nnunetv2_cads.comparison.report import write_report
from nnunetv2_cads.comparison.work import describe, do_trainings, share_of, unfinished
from nnunetv2_cads.nnunet_version import require_nnunet
from pretraining.system.errors import UserError
from pretraining.system.signals import stop_signals_collected


def run(arguments: argparse.Namespace) -> int:
    """Do what the flags ask for; returns the exit code.

    Raises:
        UserError: nothing can be done.
    """
    require_nnunet()
    if not 0 <= arguments.part < arguments.parts:
        raise UserError(
            f"--part {arguments.part}: must be from 0 to {arguments.parts - 1} for --parts {arguments.parts}"
        )
    folder = ComparisonFolder(arguments.out)
    dataset, design = ask(arguments, folder)
    if not arguments.report:  # what is trained needs no encoder file any more
        to_do = {training.arm for training in unfinished(folder, design)}
        check_arms([arm for arm in design.arms if arm.name in to_do], dataset)
    if arguments.store:
        check_leaks(design, dataset, arguments.store)
    if arguments.dry_run:
        return _list_trainings(folder, design, share_of(design, arguments.part, arguments.parts))
    if not arguments.report:
        check_device(arguments.device)
    with stop_signals_collected("stopping; the same command resumes at the last checkpoint") as received:
        if arguments.estimate:
            return estimate(folder, design, arguments.device, received)
        if arguments.report:
            design = replace(read_design(folder.design), images=design.images)
        failed, design = [], claim(folder, design)
        if not arguments.report:
            share = share_of(design, arguments.part, arguments.parts)
            failed = do_trainings(folder, design, share, arguments.device, received)
    with folder.held():  # of two that end together, the one that reads last must write last
        answer = write_report(folder, read_design(folder.design), dataset)
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
