"""From the finished fine-tunings to one results file, one table, and the paired comparisons."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from pretraining.system.files import atomic_path, write_json

RUN = ("task", "arm", "labels", "seed")
SCORE = ("case", "organ", "dice", "nsd")

Records = list[dict[str, Any]]


def collect(finetuned: Path) -> tuple[Records, list[dict[str, Any]]]:
    """Read all finished fine-tunings.

    Returns:
        Records, one per arm, label budget, seed, case and organ; and runs: arm, labels, seed, curve, milestones, cost.
    """
    records, runs = [], []
    for path in sorted(finetuned.glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        of_run = {key: run[key] for key in RUN}
        records += [of_run | row for row in run.pop("scores")]
        runs.append(run)
    return records, runs


def restore(results: dict[str, Any], finetuned: Path, arms: Iterable[str]) -> None:
    """Write the fine-tunings of some arms from a results file's content to where `collect` reads them.

    So an experiment goes on on another machine; what is there stays.
    """
    scores = defaultdict(list)
    for row in results["records"]:
        scores[tuple(row[name] for name in RUN)].append({name: row[name] for name in SCORE})
    for run in results["runs"]:
        key = tuple(run[name] for name in RUN)
        path = finetuned / run_name(*key)
        if run["arm"] in arms and not path.exists():
            write_json(path, run | {"scores": scores[key]})


def write_rows(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with one line for each element of its lists: a file that is kept under version control."""
    parts = []
    for key, value in content.items():
        lines = [json.dumps(row) for row in value] if isinstance(value, list) else []
        text = "[\n" + ",\n".join(lines) + "\n]" if lines else json.dumps(value)
        parts.append(f"{json.dumps(key)}: {text}")
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def run_name(task: str, arm: str, labels: int, seed: int) -> str:
    """File name of a fine-tuning's results."""
    return f"{task}__{arm}__{labels}__{seed}.json"


def case_scores(records: Iterable[dict[str, Any]], task: str, metric: str = "dice") -> dict[tuple, float]:
    """Mean over the organs, by (arm, labels, seed, case); organs that are nowhere (NaN) do not count."""
    values = defaultdict(list)
    for row in records:
        if row["task"] == task and row[metric] is not None and not math.isnan(row[metric]):
            values[row["arm"], row["labels"], row["seed"], row["case"]].append(row[metric])
    return {key: float(np.mean(scores)) for key, scores in values.items()}


def mean_and_sd(scores: dict[tuple, float], arm: str, labels: int) -> tuple[float, float] | None:
    """Of an arm at a label budget: mean over the cases and seeds, standard deviation of the seeds' means."""
    by_seed = defaultdict(list)
    for (of_arm, of_labels, seed, _), value in scores.items():
        if (of_arm, of_labels) == (arm, labels):
            by_seed[seed].append(value)
    if not by_seed:
        return None
    means = [np.mean(values) for values in by_seed.values()]
    return float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else math.nan


class Difference(NamedTuple):
    """Between two arms, over what both have of cases and seeds.

    Attributes:
        mean: of the pairs.
        sd: standard deviation of the seeds' means; NaN for one seed. Cases share a training, so this, not ``p``, says
            what another three seeds would give.
        p: Wilcoxon's, two-sided, of the pairs.
        pairs: their number.
    """

    mean: float
    sd: float
    p: float
    pairs: int

    def __str__(self) -> str:
        spread = "" if math.isnan(self.sd) else f" ± {100 * self.sd:.1f}"
        return f"{100 * self.mean:+.1f}{spread} (p = {self.p:.2g}, n = {self.pairs})"


def paired(scores: dict[tuple, float], arm: str, other: str, labels: int) -> Difference | None:
    """The scores of ``arm`` less those of ``other`` at a label budget; None where there are no pairs."""
    by_seed = defaultdict(list)
    for key, value in scores.items():
        if key[0] == arm and key[1] == labels and (other, *key[1:]) in scores:
            by_seed[key[2]].append(value - scores[(other, *key[1:])])
    if not by_seed:
        return None
    differences, means = np.concatenate(list(by_seed.values())), [np.mean(values) for values in by_seed.values()]
    sd = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
    p = float(stats.wilcoxon(differences).pvalue) if np.any(differences) else 1.0
    return Difference(float(differences.mean()), sd, p, len(differences))


def table(records: Records, task: str, arms: Iterable[str], budgets: Iterable[int], baseline: str) -> str:
    """Markdown: Dice by arm and budget, mean ± sd over seeds, and the `Difference` to the baseline.

    Arms and budgets of which nothing is finished are left out.
    """
    dice, nsd = case_scores(records, task), case_scores(records, task, "nsd")
    arms = [arm for arm in arms if any(key[0] == arm for key in dice)]
    budgets = [n for n in budgets if any(key[1] == n for key in dice)]
    heads = ["arm", *(f"Dice, {n} labelled" for n in budgets), *(f"- {baseline}, {n}" for n in budgets), "NSD, fewest"]
    rows = []
    for arm in arms:
        means = [f"{mean[0]:.3f} ± {mean[1]:.3f}" if (mean := mean_and_sd(dice, arm, n)) else "" for n in budgets]
        differences = ["" if arm == baseline else str(paired(dice, arm, baseline, n) or "") for n in budgets]
        surface = mean_and_sd(nsd, arm, budgets[0]) if budgets else None
        rows.append([arm, *means, *differences, f"{surface[0]:.3f}" if surface else ""])
    return _markdown(heads, rows)


def comparison_table(records: Records, task: str, pairs: Iterable[tuple[str, str]], budgets: Iterable[int]) -> str:
    """Markdown: the first arm of each pair less the second, by budget; what neither has is left out."""
    dice, budgets = case_scores(records, task), list(budgets)
    rows = [(f"{arm} - {other}", [paired(dice, arm, other, n) for n in budgets]) for arm, other in pairs]
    heads = ["Dice, points", *(f"{n} labelled" for n in budgets)]
    return _markdown(heads, [[name, *(str(found or "") for found in row)] for name, row in rows if any(row)])


def cost_table(runs: list[dict[str, Any]], pretraining: dict[str, dict[str, float]]) -> str:
    """Markdown: what a step of fine-tuning costs by arm, and a sample of pre-training by method."""
    rows = []
    for arm in dict.fromkeys(run["arm"] for run in runs):
        costs = [run["cost"] for run in runs if run["arm"] == arm]
        seconds = np.median([cost["seconds_per_iteration"] for cost in costs])
        memory = max(cost["peak_memory_bytes"] for cost in costs) / 2**30
        parameters, flops = costs[0]["parameters"] / 1e6, costs[0]["flops_per_iteration"] / 1e9
        rows.append([arm, f"{parameters:.1f}", f"{flops:.0f}", f"{seconds:.2f}", f"{memory:.1f}"])
    finetuning = _markdown(
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
    return f"{finetuning}\n\n{_markdown(heads, rows)}"


def probe_table(probes: dict[str, dict[str, Any]]) -> str:
    """Markdown: what `pretraining/probe.py` finds of each frozen encoder."""
    keys = ("linear", "linear_stem", "linear_stage1", "knn", "real_linear", "real_knn", "top1", "top5")
    rows = [
        [name, *(f"{found[key]:.3f}" if key in found else "" for key in keys), f"{found['ranks'][-1]:.1f}"]
        for name, found in probes.items()
    ]
    return _markdown(["frozen encoder", *keys, "rank, stage 4"], rows)


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def iterations_to_reach(runs: list[dict[str, Any]], task: str, arm: str, goal: str, labels: int) -> str:
    """The first milestone at which the mean of an arm's runs is at the mean of the last milestone of ``goal``."""
    curves = {
        name: [r["milestones"] for r in runs if (r["task"], r["arm"], r["labels"]) == (task, name, labels)]
        for name in (arm, goal)
    }
    if not all(found and all(found) for found in curves.values()):
        return "not measured"
    target = np.mean([curve[-1]["dice"] for curve in curves[goal]])
    for step in zip(*curves[arm], strict=True):
        if np.mean([point["dice"] for point in step]) >= target:
            return f"{step[0]['iteration']} of {curves[goal][0][-1]['iteration']}"
    return f"not within {curves[arm][0][-1]['iteration']}"
