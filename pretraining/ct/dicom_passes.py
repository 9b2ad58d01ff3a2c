"""Passes: slices of one series that were taken in several goes over the same place, and belong in several volumes.

Headers name the go that a slice is of in several ways (`PASS_KEYWORDS`). Goes that continue each other, as scanners
number them along one scan, are one volume. Where one comes back after another along the patient, they alternate:
stacked, they would be one striped volume. Times of acquisition differ from slice to slice in any scan, so they are no
sign of it.
"""

from collections import defaultdict
from itertools import pairwise

import numpy as np

from pretraining.ct.dicom_checks import is_grid
from pretraining.ct.dicom_series import PASS_KEYWORDS, Slice
from pretraining.ct.scan import UnusableScanError

MIN_SLICES = 4
"""Of a usual pass: what names fewer slices is of the slice, like a time, and no pass."""
MIN_RUN = 3
"""Slices in a row of one go, on average, from which they are parts of one scan, such as turns of the tube."""


def split_passes(slices: list[Slice]) -> list[list[int]]:
    """The indices of the slices of each pass, in order; one list where all belong together.

    Slices that lie in one grid are split only where those of each pass do so, too.

    Args:
        slices: of one series, in order along the patient.
    """
    for values in zip(*(each.passes for each in slices), strict=True):
        parts, _ = _alternating(values)
        members = [[slices[index] for index in part] for part in parts]
        if parts and not (is_grid(slices) and not all(map(is_grid, members))):
            split = zip(parts, map(split_passes, members), strict=True)
            return [[part[index] for index in indices] for part, lists in split for indices in lists]
    return [list(range(len(slices)))]


def check_one_pass(slices: list[Slice]) -> None:
    """Raise `UnusableScanError` where slices of several passes alternate that cannot be told apart for sure."""
    if len(split_passes(slices)) > 1:
        raise UnusableScanError(
            "holds several passes, phases or stacks over the same place; export each as a series of its own"
        )
    for keyword, values in zip(PASS_KEYWORDS, zip(*(each.passes for each in slices), strict=True), strict=True):
        parts, runs = _alternating(values)
        if parts and len(slices) < MIN_RUN * runs:
            raise UnusableScanError(
                f"has slices that alternate in {keyword} along the patient, but are not evenly spaced for each, so it "
                "may be several passes; export each as a series of its own"
            )


def _alternating(values: tuple[str, ...]) -> tuple[list[list[int]], int]:
    """Where a value comes back after another, the indices of each value; and how often it changes, plus 1."""
    parts: dict[str, list[int]] = defaultdict(list)
    for index, value in enumerate(values):
        parts[value].append(index)
    runs = 1 + sum(one != other for one, other in pairwise(values))
    is_pass = runs > len(parts) and np.median([len(part) for part in parts.values()]) >= MIN_SLICES
    return (list(parts.values()) if is_pass else []), runs
