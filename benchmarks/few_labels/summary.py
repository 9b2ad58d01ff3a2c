"""What starts add to random weights, as plain rows for all tasks: `docs/evidence/summary.json`."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pretraining.system.files import write_json

SUMMARY = "summary.json"
BEST = "best"


@dataclass(frozen=True)
class Gain:
    """Of a start at a budget, over the seeds that it and random weights have both; in points of Dice.

    Attributes:
        task: name.
        start: name of the pre-training.
        window: HU that the network sees; None: as nnU-Net plans.
        iterations: length of the fine-tunings.
        labels: budget.
        mean: Dice of the start.
        gain: over random weights.
        low: lower end of the gain's 95% interval.
        high: its upper end.
        seeds_ahead: on how many seeds the gain is above 0.
        seeds: their number.
    """

    task: str
    start: str
    window: tuple[float, float] | None
    iterations: int
    labels: int
    mean: float
    gain: float
    low: float
    high: float
    seeds_ahead: int
    seeds: int


def summary(found: Iterable[Gain]) -> list[dict[str, Any]]:
    """As plain rows, numbers to two digits; ``start`` of the one that gains most is `BEST`.

    That is, in the mean over its rows, of those starts that have several: one lucky setting makes no start the best.
    """
    of_start = defaultdict(list)
    for gain in (found := list(found)):
        of_start[gain.start].append(gain.gain)
    tried = {start: np.mean(values) for start, values in of_start.items() if len(values) > 1}
    best = max(tried, key=tried.get, default=None)
    rows = [{k: round(v, 2) if isinstance(v, float) else v for k, v in asdict(gain).items()} for gain in found]
    return [
        row | {"start": BEST if row["start"] == best else row["start"], "pretraining": row["start"]} for row in rows
    ]


def write_summary(file: Path, task: str, found: Iterable[Gain]) -> None:
    """Replace the rows of a task in a file; those of others stay."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    others = [row for row in rows if row["task"] != task]
    write_json(file, sorted(others + summary(found), key=lambda row: row["task"]))  # stable: a task's order stays
