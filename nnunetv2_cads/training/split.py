"""Splits of fewer labelled cases than nnU-Net's five folds need, and which folds a dataset has.

With five or more cases, nnU-Net's own split is made, by nnU-Net.
"""

import json
from collections.abc import Sequence
from pathlib import Path

NNUNET_FOLDS = 5
"""nnU-Net splits into so many, and needs as many cases."""
SPLITS_FILE = "splits_final.json"

ONE_CASE = (
    "there is one labelled case, so it is validated on as well; that Dice says nothing about other scans; "
    "label a second case to know more"
)
OUTGROWN = "was made of fewer cases than the {count} that there are now; remove it, and all of them are split anew"


def few_cases_split(cases: Sequence[str]) -> list[dict[str, list[str]]]:
    """Leave-one-out for two to four cases, in the form of splits_final.json; a single case trains and validates.

    Raises:
        ValueError: there is no case, or nnU-Net's own split suits them.
    """
    if not 1 <= len(cases) < NNUNET_FOLDS:
        raise ValueError(f"few_cases_split takes 1 to {NNUNET_FOLDS - 1} cases, got {len(cases)}")
    ordered = sorted(map(str, cases))
    if len(ordered) == 1:
        return [{"train": ordered, "val": ordered}]
    return [{"train": [case for case in ordered if case != left], "val": [left]} for left in ordered]


def read_splits(file: Path) -> list[dict[str, list[str]]]:
    """The folds of a splits_final.json."""
    return json.loads(file.read_text(encoding="utf-8"))


def is_outgrown(file: Path, cases: Sequence[str]) -> bool:
    """Whether a file is a `few_cases_split` of fewer cases than there are now; other splits are the user's own."""
    if not file.exists():
        return False
    splits = read_splits(file)
    named = {case for fold in splits for case in (*fold["train"], *fold["val"])}
    return 1 <= len(named) < min(NNUNET_FOLDS, len(cases)) and splits == few_cases_split(sorted(named))


def folds_in_words(count: int) -> str:
    """Which folds there are, for a message: "fold 0 and fold all", or "folds 0 to 2 and fold all"."""
    return "fold 0 and fold all" if count == 1 else f"folds 0 to {count - 1} and fold all"
