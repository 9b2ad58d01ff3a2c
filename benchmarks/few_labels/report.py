"""The study's tables: Dice by arm and label budget, paired differences, costs and probes."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from tables import markdown_table

from few_labels.arms import (
    ARMS,
    COMPARISONS,
    LENGTHS,
    PRETRAININGS,
    REAL_ARMS,
    SCRATCH,
    SCRATCH_IN_WINDOW,
    SUPERVISED,
)
from few_labels.results import Runs
from few_labels.scores import difference, iterations_to_reach, scores_of
from few_labels.summary import Gain
from few_labels.tasks import REAL_SOURCES, TORSOS
from nnunetv2_cads.comparison.gains import gain_over, mean_and_sd


def report(results: dict[str, Any], budgets: list[int]) -> str:
    """All tables of a results file's content, as Markdown."""
    runs = results["runs"]
    parts = [table(runs, TORSOS, ARMS, budgets, SCRATCH), comparison_table(runs, TORSOS, COMPARISONS, budgets)]
    for name, source in REAL_SOURCES.items():
        if any(run["task"] == name for run in runs):
            parts.append(f"{name}\n\n" + table(runs, name, REAL_ARMS, [source.slabs - 1], SCRATCH))
    for labels in budgets:
        if any((run["arm"], run["labels"]) == ("CADS", labels) for run in runs):
            reached = iterations_to_reach(runs, TORSOS, "CADS", SCRATCH, labels)
            parts.append(f"Iterations to reach {SCRATCH}'s final Dice, {labels} labelled: CADS {reached}")
    of_torsos = [run for run in runs if run["task"] == TORSOS]  # all of one patch size
    parts += [cost_table(of_torsos, results["pretraining"]), probe_table(results["probes"])]
    return "\n\n".join(parts) + "\n"


def gains_of_torsos(runs: Runs, iterations: int) -> list[Gain]:
    """What every pre-training adds to random weights in the same window, after trainings of the same length.

    Args:
        runs: fine-tunings.
        iterations: their length, where an arm has no other.
    """
    dice, found = scores_of(runs, TORSOS), []
    for name, arm in ARMS.items():
        kind = PRETRAININGS[arm.pretraining].method if arm.pretraining else SUPERVISED
        if kind == SUPERVISED or arm.frozen or arm.encoder_lr:
            continue
        baseline = (SCRATCH_IN_WINDOW if arm.window else SCRATCH) + LENGTHS[arm.length]
        for labels in arm.budgets:
            if gain := gain_over(dice, baseline, name, labels):
                numbers = gain.mean, gain.gain, gain.low, gain.high, gain.seeds_ahead, gain.seeds
                length = round(iterations * arm.length)
                found.append(Gain(TORSOS, arm.pretraining, arm.window, length, labels, *numbers))
    return found


def table(runs: Runs, task: str, arms: Iterable[str], budgets: Iterable[int], baseline: str) -> str:
    """Markdown: Dice by arm and budget, mean ± sd over seeds, and the gain over the baseline.

    Arms and budgets of which nothing is finished are left out.
    """
    dice, nsd = scores_of(runs, task), scores_of(runs, task, "nsd")
    arms = [arm for arm in arms if any(key[0] == arm for key in dice)]
    budgets = [n for n in budgets if any(key[1] == n for key in dice)]
    heads = ["arm", *(f"Dice, {n} labelled" for n in budgets), *(f"- {baseline}, {n}" for n in budgets), "NSD, fewest"]
    rows = []
    for arm in arms:
        means = [f"{mean[0]:.3f} ± {mean[1]:.3f}" if (mean := mean_and_sd(dice, arm, n)) else "" for n in budgets]
        differences = ["" if arm == baseline else difference(dice, arm, baseline, n) for n in budgets]
        surface = mean_and_sd(nsd, arm, budgets[0]) if budgets else None
        rows.append([arm, *means, *differences, f"{surface[0]:.3f}" if surface else ""])
    return markdown_table(heads, rows)


def comparison_table(runs: Runs, task: str, pairs: Iterable[tuple[str, str]], budgets: Iterable[int]) -> str:
    """Markdown: the first arm of each pair less the second, by budget; what neither has is left out."""
    dice, budgets = scores_of(runs, task), list(budgets)
    rows = [(f"{arm} - {other}", [difference(dice, arm, other, n) for n in budgets]) for arm, other in pairs]
    heads = ["Dice, points", *(f"{n} labelled" for n in budgets)]
    return markdown_table(heads, [[name, *row] for name, row in rows if any(row)])


def cost_table(runs: Runs, pretraining: dict[str, dict[str, float]]) -> str:
    """Markdown: what a step of fine-tuning costs by arm, and a sample of pre-training by method."""
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        costs = [run["cost"] for run in runs if run["arm"] == arm]
        seconds = np.median([cost["seconds_per_iteration"] for cost in costs])
        memory = max(cost["peak_memory_bytes"] for cost in costs) / 2**30
        parameters, flops = costs[0]["parameters"] / 1e6, costs[0]["flops_per_iteration"] / 1e9
        rows.append([arm, f"{parameters:.1f}", f"{flops:.0f}", f"{seconds:.2f}", f"{memory:.1f}"])
    finetuning = markdown_table(
        ["fine-tuning", "parameters, M", "GFLOP per iteration", "s per iteration", "peak memory, GiB"], rows
    )
    rows = [
        [
            name,
            f"{cost['gflop_per_sample']:.1f}",
            f"{cost['seconds_per_sample']:.3f}",
            f"{cost['peak_memory_bytes'] / 2**30:.1f}",
        ]
        for name, cost in pretraining.items()
    ]
    heads = ["pre-training", "GFLOP per sample", "s per sample", "peak memory, GiB"]
    return f"{finetuning}\n\n{markdown_table(heads, rows)}"


def probe_table(probes: dict[str, dict[str, Any]]) -> str:
    """Markdown: what `few_labels.probes` finds of each frozen encoder."""
    keys = ("linear", "linear_stem", "linear_stage1", "knn", "real_linear", "real_knn", "top1", "top5")
    rows = [
        [name, *(f"{found[key]:.3f}" if key in found else "" for key in keys), f"{found['ranks'][-1]:.1f}"]
        for name, found in probes.items()
    ]
    return markdown_table(["frozen encoder", *keys, "rank, stage 4"], rows)
