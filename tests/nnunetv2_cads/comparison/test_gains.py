"""Gains over the baseline: pairs, intervals that know what is shared, and plain words."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nnunetv2_cads.comparison.gains import Gain, case_scores, gain_over, interval, sentence

GAIN = Gain("x", 2, 60.0, 4.1, 1.9, 6.3, 3, 3, 10, 10)


def result(arm, seed, dice, budget=1):
    """A training with these Dice by case and organ."""
    rows = [
        {"case": case, "organ": organ, "dice": value, "nsd": 1.0}
        for case, organs in dice.items()
        for organ, value in organs.items()
    ]
    return {"arm": arm, "budget": budget, "seed": seed, "scores": rows}


def test_only_seeds_and_cases_of_both_are_compared():
    results = [
        result("scratch", 0, {"a": {"liver": 0.5, "spleen": 0.7}, "b": {"liver": 0.4, "spleen": None}}),
        result("scratch", 2, {"a": {"liver": 0.1}, "b": {"liver": 0.1}}),
        result("x", 0, {"a": {"liver": 0.6, "spleen": 0.8}, "b": {"liver": 0.3, "spleen": None}, "c": {"liver": 1.0}}),
        result("x", 1, {"a": {"liver": 1.0}, "b": {"liver": 1.0}}),
    ]
    gain = gain_over(case_scores(results, "dice"), "scratch", "x", 1)
    assert (gain.seeds, gain.cases, gain.seeds_ahead) == (1, 2, 0)
    assert gain.mean == pytest.approx(50.0) and gain.gain == pytest.approx(0.0)
    of_liver = gain_over(case_scores(results, "dice", "liver"), "scratch", "x", 1)
    assert of_liver.mean == pytest.approx(45.0)
    assert gain_over(case_scores(results, "dice"), "scratch", "x", 2) is None


@given(st.integers(2, 6), st.integers(2, 12), st.floats(-5, 5))
def test_an_interval_holds_the_mean_and_moves_with_it(seeds, cases, shift):
    differences = np.random.default_rng(seeds * cases).normal(size=(seeds, cases))
    low, high = interval(differences)
    assert low <= differences.mean() <= high
    assert np.allclose(interval(differences + shift), (low + shift, high + shift))


def test_what_all_cases_or_all_seeds_share_is_no_certainty():
    """As many numbers, but of few independent ones: the interval must not shrink with their copies."""
    rng = np.random.default_rng(0)
    by_seed, by_case = rng.normal(size=(5, 1)), rng.normal(size=(1, 20))
    for shared, count in ((np.repeat(by_seed, 20, 1), 5), (np.repeat(by_case, 5, 0), 20)):
        width = np.ptp(interval(shared))
        reach = stats.t.ppf(0.975, count - 1) * shared.std() / np.sqrt(count)
        assert width == pytest.approx(2 * reach, rel=0.25)


@pytest.mark.parametrize(("seeds", "cases"), [(2, 10), (3, 10), (5, 10), (3, 2), (3, 3), (3, 5)])
def test_chance_rarely_makes_a_gain(seeds, cases):
    """Seeds differ, or with few cases these, and no gain in truth: what is called clear is near chance's 5%."""
    rng, claimed = np.random.default_rng(0), 0
    for _ in range(150):
        luck = rng.normal(0, 3, (seeds, 1) if cases == 10 else (1, cases))
        low, high = interval(luck + rng.normal(0, 1, (seeds, cases)))
        claimed += low > 0 or high < 0
    assert claimed / 150 < 0.1


def test_the_cases_of_a_patient_are_one_patient():
    """As wide as if each patient had one case, and their number is told."""
    rng = np.random.default_rng(0)
    by_patient = rng.normal(2, 1, (1, 4)) + rng.normal(0, 0.1, (3, 4))
    patients = [patient for patient in "abcd" for _ in range(5)]
    low, high = interval(np.repeat(by_patient, 5, 1), patients)
    assert np.allclose((low, high), interval(by_patient))
    assert np.ptp(interval(np.repeat(by_patient, 5, 1))) < 0.7 * (high - low)
    results = [result(arm, 0, {case: {"liver": 0.5} for case in "abc"}) for arm in ("scratch", "x")]
    gain = gain_over(case_scores(results, "dice"), "scratch", "x", 1, {"a": "p", "b": "p", "c": "q"})
    assert (gain.cases, gain.patients) == (3, 2)
    assert "(1 seed, 3 test cases of 2 patients)" in sentence(gain)


def test_one_patient_proves_nothing():
    assert GAIN.is_clear and not dataclasses.replace(GAIN, patients=1).is_clear


def test_sentences_say_gain_loss_and_neither():
    assert sentence(GAIN) == (
        "With 2 labelled cases, x gains 4.1 points of Dice (95% interval 1.9 to 6.3; ahead on 3 of 3 seeds, 10 test "
        "cases)."
    )
    loss = dataclasses.replace(GAIN, gain=-4.1, low=-6.3, high=-1.9, seeds_ahead=0, budget=1)
    assert sentence(loss).startswith("With 1 labelled case, x loses 4.1 points of Dice (95% interval -6.3 to -1.9;")
    unclear = dataclasses.replace(GAIN, gain=0.3, low=-1.0, high=2.0)
    assert sentence(unclear).startswith("With 2 labelled cases, x shows no clear gain: +0.3 points of Dice (95%")
    single = dataclasses.replace(GAIN, seeds=1, seeds_ahead=1)
    assert "is +4.1 points of Dice from the baseline in one pair of trainings" in sentence(single)
