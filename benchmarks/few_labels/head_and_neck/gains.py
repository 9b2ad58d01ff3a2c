"""What a start adds to random weights; its interval does not count the cases of one training as independent."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from few_labels.head_and_neck.data import TASK
from few_labels.head_and_neck.trainings import RANDOM
from few_labels.summary import Gain
from nnunetv2_cads.comparison.gains import Gain as ArmGain
from nnunetv2_cads.comparison.gains import Scores, case_scores, gain_over


def gains(runs: Iterable[dict[str, Any]]) -> list[Gain]:
    """Of all starts, windows, lengths and budgets among the records of tested trainings."""
    found = [
        Gain(TASK, start, window or None, iterations, labels, gain.mean, gain.gain, gain.low, gain.high,
             gain.seeds_ahead, gain.seeds)
        for (_, window, iterations, labels, _), scores in _by_setting(runs, "start", "test").items()
        for start, _ in scores
        if start != RANDOM and (gain := gain_over(scores, RANDOM, start, labels))
    ]  # fmt: skip
    return sorted(found, key=lambda gain: (gain.start, gain.window or (), gain.iterations, gain.labels))


def variant_gains(runs: Iterable[dict[str, Any]]) -> list[tuple[str, ArmGain]]:
    """Of all ways to fine-tune a start, over the benchmark's own way from the same start, on the validation cases.

    Returns:
        Name of the start, and the gain, whose ``arm`` is the name of the variant.
    """
    return [
        (start, gain)
        for (start, _, _, labels, _), scores in _by_setting(runs, "variant", "validation").items()
        for variant, _ in sorted(scores)
        if variant and (gain := gain_over(scores, "", variant, labels))
    ]


def _by_setting(runs: Iterable[dict[str, Any]], arm: str, cases: str) -> dict[tuple, Scores]:
    """The scores of trainings that differ in nothing but ``arm`` and seed.

    Args:
        runs: records of trainings.
        arm: "start" or "variant"; the other one is part of the setting.
        cases: "test" or "validation".

    Returns:
        By the other one, window, iterations, labels and rates, in their order.
    """
    of_setting: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        names = {"start": run["start"], "variant": run.get("variant", "")}
        arm_name = names.pop(arm)
        rates = run["encoder_lr"], run["decoder_lr"]
        setting = *names.values(), tuple(run["window"] or ()), run["iterations"], run["labels"], rates
        of_setting[setting].append(run | {"arm": arm_name, "budget": run["labels"], "scores": run[cases]})
    return {setting: case_scores(trainings, "dice") for setting, trainings in sorted(of_setting.items())}
