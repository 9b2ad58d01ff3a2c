"""Ends and seams of the schedules."""

import pytest

from pretraining.config import PretrainConfig
from pretraining.method.schedules import cosine, linspace, rates, warmup_cosine


def test_linspace_includes_both_ends_and_stays_at_the_last():
    assert [linspace(0.0, 1.0, 5, i) for i in range(7)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("count", "values"), [(0, [2.0, 2.0]), (1, [1.0, 2.0]), (2, [1.0, 2.0])])
def test_linspace_of_hardly_any_steps(count, values):
    assert [linspace(1.0, 2.0, count, i) for i in range(2)] == values


def test_warmup_meets_the_cosine_at_the_peak():
    rates = [warmup_cosine(1.0, 0.1, 10, 30, i) for i in range(30)]
    assert rates[0] == 0.0 and rates[9] == rates[10] == 1.0
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.11


def test_no_warmup_begins_at_the_peak():
    assert warmup_cosine(1.0, 0.1, 0, 30, 0) == 1.0


def test_cosine_runs_from_start_towards_end():
    assert cosine(0.04, 0.4, 100, 0) == pytest.approx(0.04)
    assert cosine(0.04, 0.4, 100, 50) == pytest.approx(0.22)
    assert cosine(0.04, 0.4, 100, 100) == pytest.approx(0.4)


def test_rates_of_the_published_run():
    config, steps_per_epoch = PretrainConfig(), 10
    first, warm, last = (rates(config, step, steps_per_epoch) for step in (0, 100, 1499))
    assert (first.lr, first.weight_decay, first.teacher_momentum, first.teacher_temp) == pytest.approx(
        (0.0, 0.04, 0.996, 0.04)
    )
    assert warm.lr == pytest.approx(7.5e-4 * 192 / 256)
    assert (last.lr, last.weight_decay, last.teacher_momentum) == pytest.approx((2e-6, 0.4, 1.0), rel=1e-2)
    assert last.teacher_temp == 0.07
    frozen = [rates(config, step, steps_per_epoch).last_layers_frozen for step in (0, 29, 30)]
    assert frozen == [True, True, False]
