"""Which values the settings of pre-training may have (`pretraining.config`)."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from nnunetv2_cads.network_architecture.pvt_v2 import MINIMUM_SIZE
from pretraining.errors import UserError


def check_settings(settings: Mapping[str, Any], choices: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse values that cannot work, naming the setting, its value and what is allowed.

    Args:
        settings: all settings by name.
        choices: of those that name one of a few, what they may name.

    Raises:
        UserError: the first value that cannot work.
    """
    s = SimpleNamespace(**settings)
    between = f"between 0 and epochs ({s.epochs}; give --warmup-epochs with a shorter run)"
    rules = [
        ("batch_size", s.batch_size >= 1, "at least 1"),
        ("epochs", s.epochs >= 1, "at least 1"),
        ("epoch_samples", s.epoch_samples >= 0, "0 or more"),
        ("seed", s.seed >= 0, "0 or more"),
        ("num_workers", s.num_workers >= -1, "-1 or more"),
        ("head_hidden_dim", s.head_hidden_dim >= 1, "at least 1"),
        ("head_bottleneck_dim", s.head_bottleneck_dim >= 1, "at least 1"),
        ("center_momentum", 0 <= s.center_momentum <= 1, "in [0, 1]"),
        ("teacher_momentum", all(0 <= m <= 1 for m in s.teacher_momentum), "in [0, 1]"),
        ("weight_decay", min(s.weight_decay) >= 0, "0 or more"),
        ("min_lr", s.min_lr >= 0, "0 or more"),
        ("log_every", s.log_every >= 1, "at least 1"),
        ("lr", 0 < s.lr < float("inf"), "positive"),
        ("warmup_epochs", 0 <= s.warmup_epochs <= s.epochs, between),
        ("adam_betas", all(0 <= beta < 1 for beta in s.adam_betas), "in [0, 1)"),
        ("adam_eps", s.adam_eps > 0, "positive"),
        ("clip_grad", s.clip_grad >= 0, "0 or more"),
        ("head_out_dim", s.head_out_dim >= 2, "at least 2"),
        ("drop_path_rate", 0 <= s.drop_path_rate < 1, "in [0, 1)"),
        ("student_temp", s.student_temp > 0, "positive"),
        ("teacher_temp", min(s.teacher_temp) > 0, "positive"),
        ("xray_weight", s.xray_weight >= 0, "0 or more"),
        ("stage_weights", min(s.stage_weights) >= 0 < sum(s.stage_weights), "0 or more, not all 0"),
        ("accumulate", s.accumulate >= 1, "at least 1"),
        ("max_hours", s.max_hours >= 0, "0 or more"),
        ("save_minutes", s.save_minutes >= 0, "0 or more"),
        ("window_slices", s.window_slices >= s.crop_size[0], f"at least crop_size's {s.crop_size[0]} slices"),
        ("window_stride", s.window_stride >= 1, "at least 1"),
        ("central_fraction", 0 < s.central_fraction <= 1, "in (0, 1]"),
        ("mirror_probability", 0 <= s.mirror_probability <= 1, "in [0, 1]"),
        ("common_crop_scale", 0 < s.common_crop_scale[0] <= s.common_crop_scale[1], "positive and rising"),
        ("view_scale", 0 < s.view_scale[0] <= s.view_scale[1], "positive and rising"),
    ]
    rules += [(name, settings[name] in allowed, f"one of {', '.join(allowed)}") for name, allowed in choices.items()]
    if min(s.sampling_patch_size) < 1:
        raise UserError(f"sampling_patch_size must be at least 1 along each axis, got {s.sampling_patch_size}")
    if s.uniform_sampling:
        fits = _can_be_sampled(s.crop_size, s.sampling_patch_size)
        rules.append(
            ("sampling_patch_size", fits, f"such that crop_size {s.crop_size} is an even grid of such patches")
        )
    least = [size * (2 if s.uniform_sampling and axis else 1) for axis, size in enumerate(MINIMUM_SIZE[3])]
    large_enough = all(size >= low for size, low in zip(s.crop_size, least, strict=True))
    rules.insert(0, ("crop_size", large_enough, f"at least {tuple(least)}, which the encoder needs"))
    for name, good, allowed in rules:
        if not good:
            raise UserError(f"{name} must be {allowed}, got {settings[name]}")


def _can_be_sampled(crop_size: tuple[int, int, int], patch_size: tuple[int, int, int]) -> bool:
    """Whether a crop is a grid of patches of which one in four can be kept."""
    depth, height, width = (crop // patch for crop, patch in zip(crop_size, patch_size, strict=True))
    is_grid = not any(crop % patch for crop, patch in zip(crop_size, patch_size, strict=True))
    return is_grid and height % 2 == width % 2 == 0 and depth * height * width // 4 % 4 == 0
