"""Which cases are held out for all trainings, and which each training learns from."""

import random
from collections.abc import Mapping, Sequence

from pretraining.system.errors import UserError

SPLIT_SEED = 0
"""Of the held-out cases: they are drawn once for all arms, budgets and seeds."""
TEST_SHARE = 0.3


def draw_test_cases(patients: Mapping[str, str], largest_budget: int) -> list[str]:
    """Hold out whole patients: `TEST_SHARE` of them, fewer where the budgets need their cases.

    Args:
        patients: patient by case.
        largest_budget: cases that must be left to learn from.

    Returns:
        The held-out cases, sorted.

    Raises:
        UserError: there are not enough cases.
    """
    cases_of = _cases_by_patient(patients)
    order = sorted(cases_of)
    random.Random(SPLIT_SEED).shuffle(order)
    left, held_out = max(round(TEST_SHARE * len(order)), 1), []
    for patient in order:
        if left and len(patients) - len(held_out) - len(cases_of[patient]) >= largest_budget:
            held_out += cases_of[patient]
            left -= 1
    if not held_out:
        raise UserError(
            f"{len(patients)} labelled cases of {len(order)} patients are too few to learn from {largest_budget} and "
            "to hold out a patient; give smaller --labels"
        )
    return sorted(held_out)


def learning_order(patients: Mapping[str, str], seed: int) -> list[str]:
    """A seed's order of the cases to learn from: a budget is the first so many, so budgets are nested.

    Patients come one after the other, so that a small budget is not of one patient alone where others have cases, too:
    every patient's first case comes before any patient's second.

    Args:
        patients: patient by case, of the cases that are not held out.
        seed: of the order.
    """
    rng = random.Random(seed)
    cases_of = _cases_by_patient(patients)
    order = sorted(cases_of)
    rng.shuffle(order)
    for patient in order:
        rng.shuffle(cases_of[patient])
    rounds = max(map(len, cases_of.values()), default=0)
    return [cases_of[patient][turn] for turn in range(rounds) for patient in order if turn < len(cases_of[patient])]


def check_budgets(budgets: Sequence[int], cases: int) -> None:
    """Whether there are as many cases as the largest budget asks for.

    Raises:
        UserError: there are not.
    """
    if budgets and max(budgets) > cases:
        raise UserError(
            f"--labels {max(budgets)}: only {cases} labelled cases are left to learn from once the test cases are held "
            "out; give smaller budgets or fewer test cases"
        )


def _cases_by_patient(patients: Mapping[str, str]) -> dict[str, list[str]]:
    cases_of: dict[str, list[str]] = {}
    for case in sorted(patients):
        cases_of.setdefault(patients[case], []).append(case)
    return cases_of
