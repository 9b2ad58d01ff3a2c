"""Pictures of test cases in a report: where an arm is ahead of the baseline most, and where it is behind most."""

import io
import logging
from collections.abc import Sequence
from typing import Any

from nnunetv2_cads.comparison.dataset import Dataset
from nnunetv2_cads.comparison.design import Design, Training
from nnunetv2_cads.comparison.folder import ComparisonFolder
from nnunetv2_cads.comparison.gains import case_scores
from nnunetv2_cads.comparison.overlay import CT_WINDOW_HU, OverlayRow, write_overlay

logger = logging.getLogger(__name__)


def best_and_worst(
    folder: ComparisonFolder, design: Design, dataset: Dataset, results: Sequence[dict[str, Any]]
) -> list[tuple[str, bytes]]:
    """For each arm but the baseline, at the smallest budget and the first seed that both have: a title, and a PNG of
    the test case where it is ahead most and of the one where it is behind most."""
    scores, baseline = case_scores(results, "dice"), design.arms[0].name
    found = []
    for arm in design.arms[1:]:
        pair = _first_pair(scores, baseline, arm.name, design)
        if pair is None:
            continue
        budget, seed = pair
        ours, theirs = scores[arm.name, budget][seed], scores[baseline, budget][seed]
        order = sorted(ours.keys() & theirs.keys(), key=lambda case: ours[case] - theirs[case])
        rows = []
        for case in dict.fromkeys((order[-1], order[0])):
            title = f"{case}: {100 * (ours[case] - theirs[case]):+.1f} points"
            rows.append(
                _row(folder, dataset, title, case, {n: Training(n, budget, seed) for n in (arm.name, baseline)})
            )
        if all(path.exists() for row in rows for path in (row.image, *row.maps.values())):
            content = io.BytesIO()
            try:
                write_overlay(content, rows, _label_values(dataset), _window(dataset))
            except Exception as error:  # an image that cannot be drawn must not cost the report
                logger.warning("warning: no picture of %s (%s)", arm.name, error)
                continue
            found.append((f"{arm.name} and {baseline}, {budget} labelled, seed {seed}", content.getvalue()))
    return found


def _first_pair(scores: Any, baseline: str, arm: str, design: Design) -> tuple[int, int] | None:
    for budget in design.budgets:
        for seed in range(design.seeds):
            if scores.get((arm, budget), {}).get(seed) and scores.get((baseline, budget), {}).get(seed):
                return budget, seed
    return None


def _row(
    folder: ComparisonFolder, dataset: Dataset, title: str, case: str, trainings: dict[str, Training]
) -> OverlayRow:
    predictions = {name: folder.predictions(one) / f"{case}{dataset.file_ending}" for name, one in trainings.items()}
    return OverlayRow(title, dataset.images(case)[0], {"truth": dataset.label(case), **predictions})


def _label_values(dataset: Dataset) -> dict[str, int]:
    """Names by value in the label maps; a value that several regions share has their names together."""
    names: dict[int, list[str]] = {}
    for name, value in dataset.description["labels"].items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            names.setdefault(int(number), []).append(name)
    return {" / ".join(of_value): value for value, of_value in sorted(names.items())}


def _window(dataset: Dataset) -> tuple[float, float] | None:
    channel = str(dataset.description.get("channel_names", {}).get("0", ""))
    return CT_WINDOW_HU if channel.lower() == "ct" else None
