"""The presets of `cads_pretrain`: what each changes against the published run, which is the default."""

from typing import Any

_POINTS_ALONE: dict[str, Any] = {
    "distillation_weight": 0.0,
    "point_weight": 1.0,
    "intensity_window": (-256.0, 358.0),
    "weight_decay": (0.04, 0.04),
    "adam_betas": (0.9, 0.95),
    "warmup_epochs": 1,
}
PRESETS: dict[str, dict[str, Any]] = {
    "published": {},
    "small": _POINTS_ALONE
    | {
        "point_crop_size": (32, 96, 96),
        "batch_size": 16,
        "lr": 3.2e-2,
        "epochs": 20,
        "epoch_samples": 16384,
        "amp": "bf16",
    },
    "demo": _POINTS_ALONE
    | {
        "point_crop_size": (24, 48, 48),
        "batch_size": 2,
        "lr": 1e-3 * 256 / 2,
        "teacher_momentum": (0.99, 1.0),
        "epochs": 8,
        "epoch_samples": 100,
        "num_workers": 1,
    },
    "cads": {
        "crop_size": (16, 64, 64),
        "common_crop_scale": (1.1, 1.4),
        "mirror_probability": 0.0,
        "intensity": "weak",
        "batch_size": 8,
        "head_out_dim": 512,
        "head_hidden_dim": 512,
        "head_batch_norm": True,
        "lr": 4.8e-2,
        "teacher_momentum": (0.99, 1.0),
        "teacher_temp": (0.04, 0.04),
        "warmup_epochs": 1,
        "freeze_last_layer_epochs": 0,
        "epochs": 6,
        "epoch_samples": 128,
        "num_workers": 1,
    },
}
"""Changes against the published run. docs/pretraining.md gives their reasons and what was measured."""
