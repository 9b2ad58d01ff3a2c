"""Every setting of pre-training: its default (the published run), its meaning, and the presets that change some.

One dataclass per concern; `cads_pretrain --help` and ``config.json`` are made from them. Presets are plain data.
"""

import dataclasses
import json
from dataclasses import dataclass, field, fields
from typing import Any

from pretraining.config_rules import check_settings
from pretraining.errors import UserError

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
