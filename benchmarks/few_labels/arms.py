"""The arms of the comparison, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ALL_BUDGETS = (1, 2, 4, 8)
FEW_BUDGETS = (1, 2)
SUPERVISED = "supervised"
"""An encoder that was fine-tuned from random weights on all labelled cases."""
SCRATCH = "CADS_scratch"
"""The arm that every other one is compared with."""
SCRATCH_IN_WINDOW = "CADS_scratch_in_window"
"""The same for arms that see `SOFT_TISSUE`."""
LENGTHS = {0.5: "_half", 1.0: "", 3.0: "_long"}
"""Length of a fine-tuning, as a part of the schedule's -> end of the arm's name."""
MAIN_ARMS = ("nnUNetTrainer", "ResEncM", SCRATCH, "CADS")
"""The arms that are run first."""
REAL_ARMS = (*MAIN_ARMS, "CADS_no_sampling_2x_slow")
"""The arms that are run on the real scans, too."""


@dataclass(frozen=True)
class Pretraining:
    """One pre-trained encoder.

    Attributes:
        method: ``cads``, one of `few_labels.pretrain.PEERS`, or `SUPERVISED`.
        changes: settings of `pretraining.config` that differ from the recipe.
        equal_flops: whether it is made as short as the FLOPs of CADS pay for; else it has the steps of its settings.
    """

    method: str = "cads"
    changes: Mapping[str, Any] = field(default_factory=dict)
    equal_flops: bool = False


@dataclass(frozen=True)
class Arm:
    """One network and its start.

    Attributes:
        trainer: class name of nnU-Net or of this project.
        plans: name of the plans file.
        pretraining: name in `PRETRAININGS`; None starts from random weights.
        budgets: numbers of labelled cases that it is trained with.
        length: of its fine-tuning, as a part of the schedule's.
        frozen: whether the encoder keeps its weights, so that only the decoder learns (PVT-UNet alone).
        encoder_lr: of the encoder, where not the schedule's (PVT-UNet alone).
        window: HU that the network sees; None: as nnU-Net plans.
    """

    trainer: str
    plans: str = "nnUNetPlans"
    pretraining: str | None = None
    budgets: tuple[int, ...] = ALL_BUDGETS
    length: float = 1.0
    frozen: bool = False
    encoder_lr: float | None = None
    window: tuple[float, float] | None = None


SOFT_TISSUE = (-256.0, 358.0)
"""HU that the contrast of points sees, and is fine-tuned with."""
WHOLE_VIEWS = {"uniform_sampling": False}
RESTORATION = {
    "distillation_weight": 0.0,
    "restoration_weight": 1.0,
    "restored_crop_size": (16, 48, 48),
    "batch_size": 4,
    "lr": 6.4e-2,
    "weight_decay": (0.04, 0.04),
}
POINTS = {
    "distillation_weight": 0.0,
    "point_weight": 1.0,
    "point_crop_size": (16, 48, 48),
    "intensity_window": SOFT_TISSUE,
    "batch_size": 2,
    "lr": 0.128,
    "weight_decay": (0.04, 0.04),
    "adam_betas": (0.9, 0.95),
    "teacher_momentum": (0.996, 1.0),
}
IN_HU = {"restoration_window": (-1024.0, 1024.0), "restoration_error": "l2"}

PRETRAININGS = {
    "CADS": Pretraining(),
    "CADS_no_xray": Pretraining(changes={"xray_weight": 0.0}),
    "CADS_last_stage": Pretraining(changes={"stage_weights": (0.0, 0.0, 0.0, 1.0)}),
    "CADS_no_sampling": Pretraining(changes=WHOLE_VIEWS),
    "CADS_no_sampling_short": Pretraining(changes=WHOLE_VIEWS, equal_flops=True),
    "CADS_no_sampling_2x": Pretraining(changes={**WHOLE_VIEWS, "epochs": 48}),
    "MoCo_v3": Pretraining("moco_v3", WHOLE_VIEWS, equal_flops=True),
    "MAE": Pretraining(
        "masked_autoencoder", {**WHOLE_VIEWS, "intensity": "none", "batch_size": 8, "lr": 1.6e-2}, equal_flops=True
    ),
    "DiRA": Pretraining("dira", {**WHOLE_VIEWS, "intensity": "none"}, equal_flops=True),
    "restoration": Pretraining(changes=RESTORATION, equal_flops=True),
    "restoration_hu": Pretraining(changes={**RESTORATION, **IN_HU}, equal_flops=True),
    "points": Pretraining(changes=POINTS, equal_flops=True),
    "oracle": Pretraining(SUPERVISED),
}
"""The ablations have the recipe's number of steps, the peers its FLOPs. Peers see whole views, as in their papers,
and so fewer of them; the autoencoder, which compares no samples, in smaller batches. DiRA is here
for its cost (`pretraining_cost.py`); it is fine-tuned on head and neck. Restoration has the window of soft tissue as
its target, or all of HU with the squared error of the autoencoder. The contrast of points sees pairs of crops of the
size of the fine-tuning's patch. CADS without sampling is also made at equal FLOPs (``_short``) and with twice the
steps. The oracle's encoder was taught the organs of all labelled cases: what it gains is about what there is to gain.
"""

FINETUNED = [name for name in PRETRAININGS if name not in ("CADS", "CADS_no_sampling_short", "DiRA", "points")]
"""The encoders that are fine-tuned with few labels and as nnU-Net plans, beside CADS, which is with all budgets; the
short one is scored frozen."""
FROZEN = ("CADS", "CADS_no_sampling_short", "CADS_no_sampling_2x", "MAE", "oracle")
"""The encoders that are also scored without learning any more."""
SLOW = ("CADS", "CADS_no_sampling_2x", "oracle")
"""The encoders that are also fine-tuned at `SLOW_LR`."""
SLOW_LR = 2e-4
"""A tenth of the decoder's rate. At the schedule's, half of it, AdamW's steps can add up to more than a weight."""

ARMS = {
    "nnUNetTrainer": Arm("nnUNetTrainerNoMirroring"),
    "ResEncM": Arm("nnUNetTrainerNoMirroring", plans="nnUNetResEncUNetMPlans"),
    "CADS_scratch": Arm("nnUNetTrainerCADS_scratch"),
    "CADS": Arm("nnUNetTrainerCADS", pretraining="CADS"),
    "nnUNetTrainer_AdamW": Arm("nnUNetTrainerAdamWNoMirroring", budgets=FEW_BUDGETS),
    "CADS_scratch_half": Arm("nnUNetTrainerCADS_scratch", budgets=FEW_BUDGETS, length=0.5),
    "CADS_half": Arm("nnUNetTrainerCADS", pretraining="CADS", budgets=FEW_BUDGETS, length=0.5),
    "CADS_scratch_long": Arm("nnUNetTrainerCADS_scratch", budgets=(1,), length=3.0),
    "CADS_long": Arm("nnUNetTrainerCADS", pretraining="CADS", budgets=(1,), length=3.0),
    **{name: Arm("nnUNetTrainerCADS", pretraining=name, budgets=FEW_BUDGETS) for name in FINETUNED},
    SCRATCH_IN_WINDOW: Arm("nnUNetTrainerCADS_scratch", budgets=FEW_BUDGETS, window=SOFT_TISSUE),
    "points": Arm("nnUNetTrainerCADS", pretraining="points", budgets=FEW_BUDGETS, window=SOFT_TISSUE),
    f"{SCRATCH_IN_WINDOW}_long": Arm("nnUNetTrainerCADS_scratch", budgets=(1,), length=3.0, window=SOFT_TISSUE),
    "points_long": Arm("nnUNetTrainerCADS", pretraining="points", budgets=(1,), length=3.0, window=SOFT_TISSUE),
    "CADS_scratch_frozen": Arm("nnUNetTrainerCADS_scratch", budgets=(1,), frozen=True),
    **{f"{name}_frozen": Arm("nnUNetTrainerCADS", pretraining=name, budgets=(1,), frozen=True) for name in FROZEN},
    "CADS_scratch_slow": Arm("nnUNetTrainerCADS_scratch", budgets=FEW_BUDGETS, encoder_lr=SLOW_LR),
    **{
        f"{name}_slow": Arm("nnUNetTrainerCADS", pretraining=name, budgets=FEW_BUDGETS, encoder_lr=SLOW_LR)
        for name in SLOW
    },
}
"""No arm mirrors: left and right kidney are labels of their own, and so short a training cannot learn both.

nnU-Net's own optimiser, SGD, is slow at first; `nnUNetTrainer_AdamW` has that of PVT-UNet, at the rate of its decoder.
"""

COMPARISONS = (
    *(("CADS", other) for other in ("nnUNetTrainer", "nnUNetTrainer_AdamW", "ResEncM")),
    ("CADS_half", "CADS_scratch_half"),
    ("CADS_half", "CADS_scratch"),
    ("CADS_long", "CADS_scratch_long"),
    *(("CADS", name) for name in FINETUNED),
    ("points", SCRATCH_IN_WINDOW),
    ("points_long", f"{SCRATCH_IN_WINDOW}_long"),
    *((f"{name}_frozen", "CADS_scratch_frozen") for name in FROZEN),
    *((f"{name}_slow", "CADS_scratch_slow") for name in SLOW),
    *(("CADS_no_sampling_2x", other) for other in ("nnUNetTrainer", "nnUNetTrainer_AdamW", "ResEncM", "oracle")),
)
"""Pairs of arms that answer a question of the study, beside each arm against random weights."""

DRAWN = (
    *("nnUNetTrainer", "nnUNetTrainer_AdamW", "ResEncM", "CADS_scratch", "CADS"),
    *("MoCo_v3", "MAE", "oracle", SCRATCH_IN_WINDOW, "points"),
)
"""The arms in the figure, which all would fill; it has ten colours."""
