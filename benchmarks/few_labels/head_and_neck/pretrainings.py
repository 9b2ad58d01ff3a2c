"""The pre-trainings of the benchmark, as settings of `cads_pretrain`. Each is one run in FOLDER/runs, by its name."""

from typing import Any

CROPS_PER_EPOCH = 1000

RECIPE: dict[str, Any] = {
    "amp": "bf16",
    "num_workers": 0,
    "save_minutes": 10.0,
    "log_every": 25,
    "epoch_samples": CROPS_PER_EPOCH,
    "warmup_epochs": 1,
}
"""What all have in common."""
RESTORATION: dict[str, Any] = RECIPE | {
    "distillation_weight": 0.0,
    "restoration_weight": 1.0,
    "restored_crop_size": (24, 48, 48),
    "batch_size": 4,
    "lr": 1e-3 * 256 / 4,
    "weight_decay": (0.04, 0.04),
    "teacher_momentum": (0.998, 1.0),
}
"""60% of the blocks blank, in the window of soft tissue."""

PRETRAININGS: dict[str, dict[str, Any]] = {
    "restoration": RESTORATION | {"epochs": 100},
    "restoration_25": RESTORATION | {"epochs": 25},
    "restoration_hu": RESTORATION | {"epochs": 25, "restoration_window": (-1024.0, 1024.0), "restoration_error": "l2"},
    "restoration_noise": RESTORATION | {"epochs": 25, "corruption": "noise"},
    "restoration_curve": RESTORATION | {"epochs": 25, "corruption": "curve"},
}
"""By name; epochs of `CROPS_PER_EPOCH` crops."""
