"""Which scans the head-and-neck task uses, and for what: labels, test, validation, labelled pool, archive.

The scans are OpenKBP's (Babier et al., Medical Physics 48:5549, 2021), with an ``index.json`` that tells of each which
structures are contoured, and of each structure which share of the voxels just outside it was blanked
(``rim_outside_mask``): there its shape shows, and a network would learn the blank instead of the structure.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LARGEST_RIM = {"Brainstem": 0.02, "SpinalCord": 0.02, "RightParotid": 0.15, "LeftParotid": 0.15, "Mandible": 0.15}
"""Structures of the task, in the order of their labels from 1, and the share of the rim that may be blank."""
SPLIT_SEED = 14
TEST_SCANS, VALIDATION_SCANS = 30, 16


@dataclass(frozen=True)
class Split:
    """Names of scans, such as ``pt_17``; every scan with labels is in one of the first three.

    Attributes:
        test: scored in the end; neither learnt from nor in the archive.
        validation: what lengths and rates are chosen on; in the archive, without labels.
        pool: what labelled cases are drawn from; in the archive, too.
        archive: what pre-training sees: all scans but ``test``.
    """

    test: tuple[str, ...]
    validation: tuple[str, ...]
    pool: tuple[str, ...]
    archive: tuple[str, ...]

    def labelled(self, budget: int, seed: int) -> tuple[str, ...]:
        """The ``budget`` labelled cases of a seed; a smaller budget's are among those of a larger one."""
        if not 1 <= budget <= len(self.pool):
            raise ValueError(f"budget must be 1 to {len(self.pool)}, got {budget}")
        order = np.random.default_rng((SPLIT_SEED, 1, seed)).permutation(len(self.pool))
        return tuple(self.pool[i] for i in order[:budget])


def read_split(openkbp: Path) -> Split:
    """The split of the scans in a folder with an ``index.json``; it depends on their names alone."""
    index = json.loads((openkbp / "index.json").read_text(encoding="utf-8"))
    return make_split(index["patients"])


def make_split(patients: Sequence[dict]) -> Split:
    """The split of scans as ``index.json`` describes them, in any order."""
    names = _by_number(patient["name"] for patient in patients)
    usable = _by_number(patient["name"] for patient in patients if shows_no_label(patient))
    if len(usable) <= TEST_SCANS + VALIDATION_SCANS:
        raise ValueError(f"{len(usable)} scans have all labels; more than {TEST_SCANS + VALIDATION_SCANS} are needed")
    order = np.random.default_rng((SPLIT_SEED, 0)).permutation(len(usable))
    shuffled = [usable[i] for i in order]
    test, rest = shuffled[:TEST_SCANS], shuffled[TEST_SCANS:]
    return Split(
        test=_by_number(test),
        validation=_by_number(rest[:VALIDATION_SCANS]),
        pool=_by_number(rest[VALIDATION_SCANS:]),
        archive=tuple(name for name in names if name not in test),
    )


def shows_no_label(patient: dict) -> bool:
    """Whether a scan has all structures of the task, and hardly any blank where they end."""
    rims = patient["rim_outside_mask"]
    return all(name in rims and rims[name] < largest for name, largest in LARGEST_RIM.items())


def _by_number(names) -> tuple[str, ...]:
    """Names in the order of the patients' numbers."""
    return tuple(sorted(names, key=lambda name: int(name.removeprefix("pt_"))))
