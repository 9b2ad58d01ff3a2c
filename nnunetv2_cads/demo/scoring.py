"""Dice of predicted label maps against the truth."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk


def dice(prediction: np.ndarray, truth: np.ndarray, label: int) -> float:
    """Dice, in [0, 1], of one label in two arrays of one shape; NaN where neither has it."""
    predicted, true = prediction == label, truth == label
    total = predicted.sum() + true.sum()
    return float(2 * (predicted & true).sum() / total) if total else float("nan")


def score_folder(predictions: Path, truths: Path, labels: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Dice by case and label name for every label map in ``truths``; the background (0) is left out.

    Raises:
        FileNotFoundError: a case was not predicted.
    """
    scores = {}
    for path in sorted(truths.glob("*.nii.gz")):
        truth, prediction = (sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (path, predictions / path.name))
        scores[path.name.removesuffix(".nii.gz")] = {
            name: dice(prediction, truth, label) for name, label in labels.items() if label
        }
    return scores


def mean_by_label(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over the cases of each label's Dice; cases without the label do not count."""
    names = next(iter(scores.values()))
    return {name: float(np.nanmean([case[name] for case in scores.values()])) for name in names}


def write_scores(path: Path, scores: Mapping[str, Mapping[str, float]]) -> float:
    """Write Dice by case and label, means included, as JSON; returns the mean over the labels."""
    means = mean_by_label(scores)
    mean = float(np.mean(list(means.values())))
    path.write_text(json.dumps({"cases": scores, "mean": means, "mean_dice": mean}, indent=2) + "\n", encoding="utf-8")
    return mean


def format_scores(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A table: one row per label, its mean, then each case."""
    cases = [name.rsplit("_", 1)[-1] for name in scores]
    rows = [f"{'Dice':<14}{'mean':>6}   " + "".join(f"{'case ' + case:>10}" for case in cases)]
    for name, mean in mean_by_label(scores).items():
        rows.append(f"{name:<14}{mean:6.2f}   " + "".join(f"{case[name]:10.2f}" for case in scores.values()))
    return "\n".join(rows)
