"""Every setting of pre-training: its default (the published run), its meaning, and the presets that change some.

One dataclass per concern; `cads_pretrain --help` and ``config.json`` are made from them. Presets are plain data.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any

from nnunetv2_cads.network_architecture.pvt_v2 import MINIMUM_SIZE
from pretraining.system.errors import UserError

INTENSITY_LEVELS = ("published", "weak", "none")
AMP = ("none", "bf16", "fp16")
ON_NAN = ("stop", "skip")


def _setting(default: Any, doc: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"doc": doc, "choices": choices})


@dataclass(frozen=True)
class ViewConfig:
    """How a CT sub-volume becomes two CT views and an X-ray view (CADS method, sections 1 and 2)."""

    window_slices: int = _setting(24, "slices of a sub-volume")
    window_stride: int = _setting(12, "slices between neighbouring sub-volumes")
    wide_volume: int = _setting(320, "width in voxels above which only the central part is used in-plane")
    central_fraction: float = _setting(0.8, "the part of a wide volume that is used in-plane")
    crop_size: tuple[int, int, int] = _setting((16, 96, 96), "slices, height, width of a CT view before sampling")
    common_crop_scale: tuple[float, float] = _setting((1.4, 1.8), "in-plane edges of the common crop, in crop sizes")
    view_scale: tuple[float, float] = _setting((0.8, 1.2), "in-plane edges of a view, in crop sizes")
    mirror_probability: float = _setting(0.8, "probability of mirroring, for each axis")
    intensity: str = _setting("published", "strength of the intensity augmentation", INTENSITY_LEVELS)
    uniform_sampling: bool = _setting(True, "keep one patch in four of each CT view")
    sampling_patch_size: tuple[int, int, int] = _setting((4, 8, 8), "slices, height, width of a sampled patch")


@dataclass(frozen=True)
class ModelConfig:
    """Encoder and projection heads (sections 3 and 4)."""

    drop_path_rate: float = _setting(0.1, "stochastic depth of the encoder's last block")
    head_hidden_dim: int = _setting(2048, "hidden width of the projection heads")
    head_bottleneck_dim: int = _setting(256, "width before the heads' last layer")
    head_out_dim: int = _setting(60_000, "K, the width of the heads' output")
    head_batch_norm: bool = _setting(False, "batch normalisation after the hidden layers of the heads")


@dataclass(frozen=True)
class LossConfig:
    """Deep self-distillation (section 4)."""

    student_temp: float = _setting(0.1, "student temperature")
    teacher_temp: tuple[float, float] = _setting((0.04, 0.07), "teacher temperature, first epoch and after warm-up")
    warmup_teacher_temp_epochs: int = _setting(50, "epochs over which the teacher temperature rises")
    center_momentum: float = _setting(0.9, "momentum of the center of the teacher outputs")
    xray_weight: float = _setting(1.0, "weight of the pairs with the X-ray view; 0 leaves them out")
    stage_weights: tuple[float, float, float, float] = _setting(
        (1.0, 1.0, 1.0, 1.0), "weights of the stages' losses, shallow to deep; 0 0 0 1 teaches the last stage alone"
    )


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation (section 5)."""

    epochs: int = _setting(150, "length of the run")
    batch_size: int = _setting(192, "sub-volumes per step")
    lr: float = _setting(7.5e-4, "peak learning rate per 256 sub-volumes; scaled with batch_size / 256")
    min_lr: float = _setting(2e-6, "learning rate at the end")
    warmup_epochs: int = _setting(10, "epochs of linear warm-up of the learning rate")
    weight_decay: tuple[float, float] = _setting((0.04, 0.4), "weight decay, start and end of its cosine")
    teacher_momentum: tuple[float, float] = _setting((0.996, 1.0), "momentum of the teacher, start and end")
    adam_betas: tuple[float, float] = _setting((0.9, 0.999), "momenta of AdamW's two moments")
    adam_eps: float = _setting(1e-8, "what AdamW adds to the root of the second moment")
    clip_grad: float = _setting(0.3, "largest norm of each tensor's gradient; 0 switches clipping off")
    freeze_last_layer_epochs: int = _setting(3, "epochs during which the heads' last layers stay fixed")


@dataclass(frozen=True)
class RunConfig:
    """Things that do not belong to the method."""

    epoch_samples: int = _setting(0, "sub-volumes that make an epoch; 0: every one of the store once")
    seed: int = _setting(0, "seed of weights, order and views")
    device: str = _setting("auto", "cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    amp: str = _setting("none", "autocast of the forward pass; none is float32", AMP)
    accumulate: int = _setting(1, "parts in which a process takes its batch, to save memory")
    compile: bool = _setting(False, "compile student and teacher with torch.compile")
    log_every: int = _setting(10, "steps that one line of metrics.jsonl averages")
    num_workers: int = _setting(
        -1, "processes that prepare views, per training process; 0: none, -1: one on CPU, on GPU a share of the cores"
    )
    on_nan: str = _setting("stop", "at a step whose loss or gradients are not finite: end, or pass over it", ON_NAN)
    save_minutes: float = _setting(
        30.0, "write the checkpoint also when so many minutes have gone by; 0: each epoch only"
    )
    max_hours: float = _setting(0.0, "save and stop after so many hours, before a queue's limit; 0: no limit")


@dataclass(frozen=True)
class PretrainConfig:
    """The whole configuration of a run."""

    view: ViewConfig = field(default_factory=ViewConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def peak_lr(self) -> float:
        """Peak learning rate of this run's batch size."""
        return self.optim.lr * self.optim.batch_size / 256

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """As nested plain data, for config.json and checkpoints (tuples become lists, as in JSON)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, content: dict[str, dict[str, Any]]) -> "PretrainConfig":
        """Rebuild from `to_dict`'s form.

        Raises:
            UserError: a section or setting that this version does not know, or a section that is no mapping.
        """
        settings: dict[str, Any] = {}
        for section, values in content.items():
            if section not in _SECTIONS:
                raise UserError(f"config section '{section}' is unknown; this version knows {', '.join(_SECTIONS)}")
            if not isinstance(values, dict):
                raise UserError(
                    f"config section '{section}' must hold settings by name, got {values!r:.40}; restore the file"
                )
            settings.update(values)
        return cls().replace(**settings)

    def replace(self, **settings: Any) -> "PretrainConfig":
        """Copy with the named settings changed; names are unique over all sections.

        Raises:
            UserError: an unknown setting, or a value that does not fit.
        """
        changes: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            if name not in SETTINGS:
                raise UserError(f"setting '{name}' is unknown; see cads_pretrain --help")
            section, spec = SETTINGS[name]
            if isinstance(spec.default, tuple):
                value = tuple(value)
                if len(value) != len(spec.default):
                    raise UserError(f"{name} needs {len(spec.default)} values, got {len(value)}")
            changes.setdefault(section, {})[name] = value
        sections = {section: dataclasses.replace(getattr(self, section), **c) for section, c in changes.items()}
        config = dataclasses.replace(self, **sections)
        check_settings(
            {n: getattr(getattr(config, section), n) for n, (section, _) in SETTINGS.items()},
            {n: spec.metadata["choices"] for n, (_, spec) in SETTINGS.items() if spec.metadata["choices"]},
        )
        return config


_SECTIONS = {f.name: f.default_factory for f in fields(PretrainConfig)}
SETTINGS: dict[str, tuple[str, dataclasses.Field]] = {
    spec.name: (section, spec) for section, cls in _SECTIONS.items() for spec in fields(cls)
}
"""Every setting by name, with its section and its field."""

PRESETS: dict[str, dict[str, Any]] = {
    "published": {},
    "small": {
        "batch_size": 48,
        "head_out_dim": 4096,
        "head_batch_norm": True,
        "lr": 2e-3,
        "teacher_momentum": (0.99, 1.0),
        "intensity": "weak",
        "amp": "bf16",
    },
    "demo": {
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


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per setting of `pretraining.config`; a flag not given leaves no trace in the arguments."""
    groups = {}
    for name, (section, spec) in SETTINGS.items():
        if section not in groups:
            groups[section] = parser.add_argument_group(f"{section} settings")
        default = spec.default
        kind = {"dest": name, "default": argparse.SUPPRESS}
        if isinstance(default, bool):
            kind |= {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, tuple):
            kind |= {"type": type(default[0]), "nargs": len(default), "metavar": "N"}
            default = " ".join(map(str, default))
        else:
            kind |= {"type": type(default), "choices": spec.metadata["choices"]}
            if not spec.metadata["choices"]:
                kind |= {"metavar": "N" if isinstance(default, (int, float)) else "NAME"}
        flag = "--" + name.replace("_", "-")
        groups[section].add_argument(
            flag, help=f"{spec.metadata['doc']} (default: {default})".replace("%", "%%"), **kind
        )
