"""What the records say so far, as markdown."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tables import markdown_table

from few_labels.figure import Line, draw, mean_curve
from few_labels.head_and_neck.cases import LARGEST_RIM
from few_labels.head_and_neck.data import TASK
from few_labels.head_and_neck.gains import ArmGain, gains, variant_gains
from few_labels.head_and_neck.trainings import RANDOM
from few_labels.summary import Gain, write_summary

DRAWN_LABELS = 2
"""Labelled cases of the trainings in the right half of the figure."""


def print_tables(records: Path, gains_file: Path | None = None, figure: Path | None = None) -> None:
    """Print the curves of all trainings on the validation cases, the Dice on the test cases, and the gains.

    Args:
        records: folder of the records.
        gains_file: takes the gains as JSON, in place of its rows of this task.
        figure: takes a PNG, see `draw_head_and_neck`.
    """
    runs = read_records(records)
    print(curve_table(runs))
    if varied := variant_gains(runs):
        print("\n" + variant_table(varied))
    tested = [run for run in runs if run["test"]]
    if tested:
        print("\n" + dice_table(tested))
        print("\n" + gain_table(found := gains(tested)))
        if gains_file:
            write_summary(gains_file, TASK, found)
    if figure:
        draw_head_and_neck(figure, runs)


def read_records(records: Path) -> list[dict[str, Any]]:
    """All records of trainings in a folder, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(records.glob("*__*.json"))]


def curve_table(runs: list[dict[str, Any]]) -> str:
    """One row per training: mean Dice of the validation cases at each milestone, and of each organ at the end."""
    organs = list(LARGEST_RIM)
    rows = []
    for run in runs:
        curve = ", ".join(f"{point['iteration']}: {point['dice']:.3f}" for point in run["milestones"])
        rates = f"{run['encoder_lr']:g}, {run['decoder_lr']:g}"
        means = mean_by_organ(run["validation"])
        seconds = f"{run['cost']['seconds_per_iteration']:.2f}"
        head = [
            run["question"],
            " ".join(filter(None, (run["start"], run.get("variant")))),
            seen_in(run["window"]),
            str(run["labels"]),
            str(run["seed"]),
            rates,
            curve,
        ]
        rows.append([*head, *(f"{means[organ]:.3f}" for organ in organs), seconds])
    heads = [
        "question",
        "start",
        "sees, HU",
        "labels",
        "seed",
        "rates",
        "validation Dice at iteration",
        *organs,
        "s per iteration",
    ]
    return markdown_table(heads, rows)


def dice_table(runs: list[dict[str, Any]]) -> str:
    """One row per start, window, length and budget: mean Dice of the test cases by seed, and its mean."""
    by_seed: dict[tuple, dict[int, float]] = defaultdict(dict)
    for run in runs:
        start = " ".join(filter(None, (run["start"], run.get("variant"))))
        key = (run["question"], start, seen_in(run["window"]), run["iterations"], run["labels"])
        by_seed[key][run["seed"]] = float(np.mean(list(mean_by_organ(run["test"]).values())))
    rows = []
    for key, means in sorted(by_seed.items()):
        seeds = ", ".join(f"{seed}: {means[seed]:.3f}" for seed in sorted(means))
        rows.append([*map(str, key), seeds, f"{np.mean(list(means.values())):.3f}"])
    return markdown_table(["question", "start", "sees, HU", "iterations", "labels", "test Dice by seed", "mean"], rows)


def gain_table(found: list[Gain]) -> str:
    """One row per start, window, length and budget: what it adds to random weights, in points."""
    rows = [
        [
            *(
                gain.start,
                seen_in(gain.window),
                str(gain.iterations),
                str(gain.labels),
                f"{gain.mean:.1f}",
                f"{gain.gain:+.1f}",
            ),
            *(f"{gain.low:+.1f} to {gain.high:+.1f}", f"{gain.seeds_ahead} of {gain.seeds}"),
        ]
        for gain in found
    ]
    heads = ["start", "sees, HU", "iterations", "labels", "Dice", "- random", "95% interval", "seeds ahead"]
    return markdown_table(heads, rows)


def variant_table(found: list[tuple[str, ArmGain]]) -> str:
    """One row per start and variant: mean Dice of the validation cases, and what the variant adds to the own way."""
    rows = [
        [
            *(start, gain.arm, str(gain.budget), f"{gain.mean:.1f}", f"{gain.gain:+.1f}"),
            *(gain.span, f"{gain.seeds_ahead} of {gain.seeds}"),
        ]
        for start, gain in found
    ]
    heads = ["start", "variant", "labels", "Dice", "- own way", "95% interval", "seeds ahead"]
    return markdown_table(heads, rows)


def draw_head_and_neck(path: Path, runs: list[dict[str, Any]]) -> None:
    """Write a PNG of the tested trainings: test Dice by labelled cases, validation Dice by iteration."""
    draw(path, lines_of(runs), "head-and-neck scans", DRAWN_LABELS)


def lines_of(runs: list[dict[str, Any]]) -> dict[str, Line]:
    """By start, random weights first; of the tested trainings with the commonest window, length and rates.

    Raises:
        SystemExit: no training was tested.
    """
    tested = [run for run in runs if run["test"]]
    if not tested:
        raise SystemExit("no record has scores of the test cases, so there is nothing to draw; leave --figure out")
    setting = Counter(map(setting_of, tested)).most_common(1)[0][0]
    by_start: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in tested:
        if setting_of(run) == setting:
            by_start[run["start"]].append(run)
    return {start: _line(by_start[start]) for start in sorted(by_start, key=lambda start: (start != RANDOM, start))}


def _line(runs: list[dict[str, Any]]) -> Line:
    by_budget = defaultdict(list)
    for run in runs:
        by_budget[run["labels"]].append(float(np.mean(list(mean_by_organ(run["test"]).values()))))
    means = [(n, float(np.mean(dice)), float(np.std(dice, ddof=len(dice) > 1))) for n, dice in by_budget.items()]
    return Line(sorted(means), mean_curve([run["milestones"] for run in runs if run["labels"] == DRAWN_LABELS]))


def setting_of(run: dict[str, Any]) -> tuple:
    """What trainings must have in common to be compared: window, length, rates and variant."""
    rates = run["encoder_lr"], run["decoder_lr"]
    return tuple(run["window"] or ()), run["iterations"], *rates, run.get("variant", "")


def seen_in(window: Sequence[float] | None) -> str:
    """The window that the network sees, in words."""
    return f"{window[0]:g} to {window[1]:g}" if window else "nnU-Net's"


def mean_by_organ(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean Dice of each organ over the cases."""
    values = defaultdict(list)
    for row in rows:
        values[row["organ"]].append(row["dice"])
    return {organ: float(np.mean(of_organ)) for organ, of_organ in values.items()}
