"""The Dice of each organ, from the ``summary.json`` that `nnUNetv2_evaluate_folder` writes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pretraining.system.files import write_json


@dataclass(frozen=True)
class Scores:
    """Dice in [0, 1]; NaN where neither truth nor prediction has the organ, which means leave out.

    Attributes:
        cases: case -> organ -> Dice.
        mean: organ -> mean over the cases.
        mean_dice: mean over the organs.
    """

    cases: dict[str, dict[str, float]]
    mean: dict[str, float]
    mean_dice: float

    def write(self, path: Path) -> None:
        """Write them as JSON."""
        write_json(path, vars(self))

    def table(self) -> str:
        """One row per organ: its mean, then each case."""
        titles = (f"case {name.rsplit('_', 1)[-1]}" for name in self.cases)
        rows = [f"{'Dice':<14}{'mean':>6}   " + "".join(f"{title:>10}" for title in titles)]
        for organ, mean in self.mean.items():
            cells = "".join(f"{dice[organ]:10.2f}" for dice in self.cases.values())
            rows.append(f"{organ:<14}{mean:6.2f}   {cells}")
        return "\n".join(rows)


def read_scores(summary: Path, labels: Mapping[str, int]) -> Scores:
    """Read the summary; ``labels``: organ -> its number in the label maps, the background's (0) is left out."""
    content = json.loads(summary.read_text(encoding="utf-8"))

    def by_organ(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        return {organ: metrics[str(label)]["Dice"] for organ, label in labels.items() if label}

    cases = {
        Path(case["prediction_file"]).name.removesuffix(".nii.gz"): by_organ(case["metrics"])
        for case in content["metric_per_case"]
    }
    return Scores(cases, by_organ(content["mean"]), content["foreground_mean"]["Dice"])
