"""Held-out cases and budgets: whole patients, nested budgets, and no case on both sides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_cads.comparison.split import check_budgets, draw_test_cases, learning_order
from pretraining.system.errors import UserError

patients = st.dictionaries(st.text("abcdef", min_size=1), st.text("xyz", min_size=1, max_size=2), min_size=2)


@given(patients, st.integers(1, 3))
def test_whole_patients_are_held_out_and_enough_cases_are_left(of_case, budget):
    try:
        test = draw_test_cases(of_case, budget)
    except UserError:
        sizes = [list(of_case.values()).count(patient) for patient in set(of_case.values())]
        assert max(len(of_case) - size for size in sizes) < budget
        return
    left = of_case.keys() - set(test)
    assert test and len(left) >= budget
    assert not {of_case[case] for case in test} & {of_case[case] for case in left}


@given(patients, st.integers(0, 5))
def test_a_seed_orders_all_cases_and_every_patient_comes_before_any_comes_twice(of_case, seed):
    order = learning_order(of_case, seed)
    assert sorted(order) == sorted(of_case)
    count = len(set(of_case.values()))
    assert len({of_case[case] for case in order[:count]}) == count
    assert learning_order(dict(reversed(of_case.items())), seed) == order


def test_seeds_learn_from_other_cases():
    of_case = {f"case_{i}": f"case_{i}" for i in range(12)}
    assert len({tuple(learning_order(of_case, seed)[:4]) for seed in range(6)}) > 4


def test_three_tenths_are_held_out_where_there_are_enough():
    of_case = {f"case_{i}": f"case_{i}" for i in range(20)}
    assert len(draw_test_cases(of_case, 8)) == 6
    assert len(draw_test_cases(of_case, 17)) == 3


def test_too_few_cases_are_refused():
    with pytest.raises(UserError, match="2 labelled cases of 2 patients are too few to learn from 2"):
        draw_test_cases({"a": "a", "b": "b"}, 2)
    with pytest.raises(UserError, match="--labels 8: only 4 labelled cases are left"):
        check_budgets((1, 8), 4)
