"""The comparison that a command asks for: its flags, and where it gives none, what OUT already holds."""

import argparse
from dataclasses import replace

from nnunetv2_cads.comparison.arms import make_arms, with_settings
from nnunetv2_cads.comparison.dataset import Dataset, number_of, open_dataset, patients_of, read_test_cases
from nnunetv2_cads.comparison.design import Design, read_design
from nnunetv2_cads.comparison.flags import DEFAULTS
from nnunetv2_cads.comparison.folder import ComparisonFolder
from nnunetv2_cads.comparison.split import TEST_SHARE, draw_test_cases
from pretraining.system.errors import UserError

BUDGETS = (1, 2, 4, 8)
"""Where --labels is not given, as far as there are cases."""


def ask(arguments: argparse.Namespace, folder: ComparisonFolder) -> tuple[Dataset, Design]:
    """The dataset and the design; nothing is written.

    Args:
        arguments: of `cads_compare`; None, or an empty list, for flags that were not given.
        folder: OUT.

    Raises:
        UserError: something is missing, or differs from what OUT holds.
    """
    earlier = _earlier(folder)
    if earlier is None and arguments.report:
        raise UserError(f"{folder.root}: holds no comparison to report on; check OUT")
    if earlier is None and arguments.d is None:
        raise UserError(f"{folder.root}: holds no comparison yet; give -d ID to begin one")
    dataset = open_dataset(
        arguments.d or number_of(earlier.dataset),
        arguments.p or (earlier.plans if earlier else None),
        arguments.c or (earlier.configuration if earlier else DEFAULTS["configuration"]),
    )
    try:
        asked = _asked(arguments, dataset, earlier)
        return dataset, asked.extended(earlier) if earlier else asked
    except UserError as error:
        raise UserError(f"{folder.root}: {error}" if earlier else str(error)) from error


def claim(folder: ComparisonFolder, design: Design) -> Design:
    """Write a design into OUT, joined with what other processes have written there since.

    Raises:
        UserError: OUT cannot be written, or another process has begun a comparison that differs.
    """
    try:
        folder.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder.root}: cannot be made ({error.strerror}); choose another OUT") from error
    with folder.held():
        joined = design.extended(read_design(folder.design)) if folder.design.exists() else design
        joined.write(folder.design)
    return joined


def _earlier(folder: ComparisonFolder) -> Design | None:
    if folder.root.is_file():
        raise UserError(f"{folder.root}: is a file; choose another OUT")
    if folder.design.exists():
        return read_design(folder.design)
    if folder.root.exists() and any(path for path in folder.root.iterdir() if not path.name.startswith(".")):
        raise UserError(f"{folder.root}: exists and holds no comparison; choose another OUT")
    return None


def _asked(arguments: argparse.Namespace, dataset: Dataset, earlier: Design | None) -> Design:
    cases = dataset.cases()
    if earlier is None or arguments.patient_pattern or arguments.patient_table:
        patients = patients_of(cases, arguments.patient_pattern, arguments.patient_table)
    else:
        patients = dict(earlier.patients)
        if gone := sorted(set(patients) - set(cases)):
            raise UserError(f"case {gone[0]} is no longer in {dataset.raw}; put it back, or choose another OUT")
    budgets = arguments.labels or (earlier.budgets if earlier else _default_budgets(len(cases)))
    known = {arm.name: replace(arm, settings={}) for arm in earlier.arms} if earlier else {}
    asked_for = make_arms([name for name in arguments.arms if name not in known], arguments.encoder)
    arms = known | {arm.name: arm for arm in asked_for}
    settings = [*(earlier.settings if earlier else ()), *arguments.settings]
    before = vars(earlier) if earlier else DEFAULTS
    flags = {name: before[name] if (given := getattr(arguments, name, None)) is None else given for name in DEFAULTS}
    return Design(
        dataset=dataset.name,
        plans=dataset.plans_name,
        plans_sha256=dataset.plans_sha256,
        patients=patients,
        test=_test_cases(arguments, patients, max(budgets), earlier),
        arms=with_settings(list(arms.values()), settings),
        settings=tuple(settings),
        budgets=tuple(sorted(set(budgets))),
        **{**flags, "configuration": dataset.configuration},
    )


def _default_budgets(cases: int) -> tuple[int, ...]:
    return tuple(n for n in BUDGETS if n == 1 or n <= (1 - TEST_SHARE) * cases)


def _test_cases(
    arguments: argparse.Namespace, patients: dict[str, str], largest_budget: int, earlier: Design | None
) -> tuple[str, ...]:
    if not arguments.test:
        return earlier.test if earlier else tuple(draw_test_cases(patients, largest_budget))
    test = read_test_cases(arguments.test, patients)
    shared = {patients[case] for case in test} & {patients[case] for case in patients if case not in test}
    if shared:
        raise UserError(f"{arguments.test}: patient {min(shared)} has other cases, too; name all cases of a patient")
    return tuple(test)
