"""The arms of the comparison, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ALL_BUDGETS = (1, 2, 4, 8)
FEW_BUDGETS = (1, 2)
SUPERVISED = "supervised"
"""An encoder that was fine-tuned from random weights on all labelled cases."""


@dataclass(frozen=True)
class Pretraining:
    """One pre-trained encoder.

    Attributes:
        method: ``cads``, ``moco_v3``, ``masked_autoencoder``, or `SUPERVISED`.
        changes: settings of `pretraining.config` that differ from the recipe.
    """

    method: str = "cads"
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One network and its start.

    Attributes:
        trainer: class name of nnU-Net or of this project.
        plans: name of the plans file.
        pretraining: name in `PRETRAININGS`; None starts from random weights.
        budgets: numbers of labelled cases that it is trained with.
    """

    trainer: str
    plans: str = "nnUNetPlans"
    pretraining: str | None = None
    budgets: tuple[int, ...] = ALL_BUDGETS


PRETRAININGS = {
    "CADS": Pretraining(),
    "CADS_no_xray": Pretraining(changes={"xray_weight": 0.0}),
    "CADS_last_stage": Pretraining(changes={"stage_weights": (0.0, 0.0, 0.0, 1.0)}),
    "CADS_no_sampling": Pretraining(changes={"uniform_sampling": False}),
    "MoCo_v3": Pretraining("moco_v3", {"uniform_sampling": False}),
    "MAE": Pretraining("masked_autoencoder", {"uniform_sampling": False, "intensity": "none"}),
    "oracle": Pretraining(SUPERVISED),
}
"""The ablations at the recipe's number of steps; so are the peers, which see whole views, as their papers have it. The
oracle's encoder was taught the organs of all labelled cases: what it gains is about what there is to gain."""

ARMS = {
    "nnUNetTrainer": Arm("nnUNetTrainerNoMirroring"),
    "ResEncM": Arm("nnUNetTrainerNoMirroring", plans="nnUNetResEncUNetMPlans"),
    "CADS_scratch": Arm("nnUNetTrainerCADS_scratch"),
    "CADS": Arm("nnUNetTrainerCADS", pretraining="CADS"),
    **{
        name: Arm("nnUNetTrainerCADS", pretraining=name, budgets=FEW_BUDGETS) for name in PRETRAININGS if name != "CADS"
    },
}
"""No arm mirrors: left and right kidney are labels of their own, and so short a training cannot learn both."""
