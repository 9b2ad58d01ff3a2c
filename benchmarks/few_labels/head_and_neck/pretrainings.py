"""The pre-trainings of the benchmark, as settings of `cads_pretrain`. Each is one run in FOLDER/runs, by its name."""

from dataclasses import dataclass
from typing import Any

from few_labels.pretrain import flops_per_sample
from pretraining.config import PretrainConfig
from pretraining.presets import PRESETS

SAMPLES_PER_EPOCH = 1024
"""A multiple of all batches, so that an epoch is no longer than that."""

RECIPE: dict[str, Any] = PRESETS["cads"] | {
    "amp": "bf16",
    "num_workers": 0,
    "save_minutes": 10.0,
    "log_every": 25,
    "epoch_samples": SAMPLES_PER_EPOCH,
    "warmup_epochs": 1,
}
"""What all have in common: the sizes of the preset `cads`, for two cores."""
TO_RESTORE: dict[str, Any] = {
    "restoration_weight": 1.0,
    "restored_crop_size": (24, 48, 48),
    "weight_decay": (0.04, 0.04),
}
"""Of all that restore."""
RESTORATION: dict[str, Any] = (
    RECIPE
    | TO_RESTORE
    | {"distillation_weight": 0.0, "batch_size": 4, "lr": 1e-3 * 256 / 4, "teacher_momentum": (0.998, 1.0)}
)
"""Restoration alone: 60% of the blocks blank, the target in the window of soft tissue."""
CADS: dict[str, Any] = RECIPE | {"batch_size": 32, "lr": 4e-4 * 256 / 32}
BOTH: dict[str, Any] = (
    CADS
    | TO_RESTORE
    | {
        "batch_size": 8,
        "lr": 1e-3 * 256 / 8,
        "teacher_momentum": (0.996, 1.0),
        "xray": "local",
        "random_window_probability": 0.5,
    }
)
IN_WINDOW: dict[str, Any] = {"intensity_window": (-256.0, 358.0)}
"""To be fine-tuned in the same (`compare --window`)."""
TO_FIND_POINTS: dict[str, Any] = IN_WINDOW | {
    "point_weight": 1.0,
    "point_crop_size": (24, 48, 48),
    "weight_decay": (0.04, 0.04),
    "adam_betas": (0.9, 0.95),
}
"""Of all that contrast points."""
POINTS: dict[str, Any] = (
    RECIPE
    | TO_FIND_POINTS
    | {"distillation_weight": 0.0, "batch_size": 2, "lr": 1e-3 * 256 / 2, "teacher_momentum": (0.996, 1.0)}
)
"""Contrast of points alone."""


@dataclass(frozen=True)
class Pretraining:
    """A run.

    Attributes:
        settings: all but its length.
        crops: its length: so many crops of `RESTORATION`, or as many samples as have their FLOPs.
        method: "cads" for what `cads_pretrain` trains, or one of `PEERS`, which see CADS's views.
    """

    settings: dict[str, Any]
    crops: int = 12 * SAMPLES_PER_EPOCH
    method: str = "cads"

    def with_length(self) -> dict[str, Any]:
        """The settings with the number of epochs that the length makes."""
        flops = self.crops * flops_per_sample("cads", config_of(RESTORATION))
        samples = flops / flops_per_sample(self.method, config_of(self.settings))
        return self.settings | {"epochs": max(round(samples / SAMPLES_PER_EPOCH), 1)}


def config_of(settings: dict[str, Any]) -> PretrainConfig:
    """The whole configuration."""
    return PretrainConfig().replace(**settings)


PRETRAININGS: dict[str, Pretraining] = {
    "restoration": Pretraining(RESTORATION),
    "restoration_4x": Pretraining(RESTORATION, 48 * SAMPLES_PER_EPOCH),
    "restoration_hu": Pretraining(RESTORATION | {"restoration_window": (-1024.0, 1024.0), "restoration_error": "l2"}),
    "restoration_noise": Pretraining(RESTORATION | {"corruption": "noise"}),
    "restoration_shuffle": Pretraining(RESTORATION | {"corruption": "shuffle"}),
    "restoration_curve": Pretraining(RESTORATION | {"corruption": "curve"}),
    "cads": Pretraining(CADS),
    "cads_in_window": Pretraining(CADS | IN_WINDOW),
    "cads_no_sampling": Pretraining(CADS | {"uniform_sampling": False}),
    "moco_v3": Pretraining(CADS | IN_WINDOW | {"uniform_sampling": False}, method="moco_v3"),
    "dira": Pretraining(CADS | IN_WINDOW | {"uniform_sampling": False, "intensity": "none"}, method="dira"),
    "cads_windows": Pretraining(CADS | {"random_window_probability": 1.0}),
    "cads_local_xray": Pretraining(CADS | {"xray": "local"}),
    "both": Pretraining(BOTH),
    "both_tokens": Pretraining(BOTH | {"token_weight": 1.0}),
    "both_rays": Pretraining(BOTH | {"ray_weight": 1.0}),
    "both_no_xray": Pretraining(BOTH | {"xray_weight": 0.0}),
    "both_last_stage": Pretraining(BOTH | {"stage_weights": (0.0, 0.0, 0.0, 1.0)}),
    "points": Pretraining(POINTS),
    "points_half": Pretraining(POINTS, 6 * SAMPLES_PER_EPOCH),
    "points_2x": Pretraining(POINTS, 24 * SAMPLES_PER_EPOCH),
    "points_deep": Pretraining(POINTS | {"point_level_weights": (1.0, 1.0, 1.0, 1.0, 1.0)}),
    "points_cads": Pretraining(
        CADS | TO_FIND_POINTS | {"batch_size": 8, "lr": 1e-3 * 256 / 8, "teacher_momentum": (0.996, 1.0)}
    ),
}
"""By name. All have equal FLOPs, about an hour of one core, but `_half`, `_2x` and `_4x`."""
