"""Every setting of pre-training: its default (the published run), its meaning, and what it may be.

One dataclass per concern; `cads_pretrain --help` and ``config.json`` are made from them.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from nnunetv2_cads.encoder_file.record import CLIP_HU
from nnunetv2_cads.network_architecture.pvt_v2 import MINIMUM_SIZE, SIZES
from pretraining.system.errors import UserError


class Rule(NamedTuple):
    """What a setting may be."""

    allowed: str  # in words, after "must be"
    holds: Callable[[Any], bool]  # whether a value is allowed; of several values, it gets the tuple
    choices: tuple[str, ...] | None = None  # where there are but a few


def at_least(least: float) -> Rule:
    """A number that is not too small."""
    return Rule(f"at least {least}", lambda value: value >= least)


def one_of(*choices: str) -> Rule:
    """One of a few names."""
    return Rule(f"one of {', '.join(choices)}", choices.__contains__, choices)


def each(rule: Rule) -> Rule:
    """A rule for each of several values."""
    return Rule(rule.allowed, lambda values: all(map(rule.holds, values)))


ANY = Rule("anything", lambda value: True)
POSITIVE = Rule("positive", lambda value: 0 < value < math.inf)
FRACTION = Rule("in [0, 1]", lambda value: 0 <= value <= 1)
BELOW_ONE = Rule("in [0, 1)", lambda value: 0 <= value < 1)
POSITIVE_FRACTION = Rule("in (0, 1]", lambda value: 0 < value <= 1)
BLOCK = Rule("at least 1 along each axis", lambda values: min(values) >= 1)
WINDOW = Rule(
    f"rising, from {CLIP_HU[0]} to {CLIP_HU[1]}", lambda values: CLIP_HU[0] <= values[0] < values[1] <= CLIP_HU[1]
)
ANGLE = Rule("from 0 to 90", lambda values: min(values) >= 0 and max(values) <= 90)
RISING = Rule("positive and rising", lambda values: 0 < values[0] <= values[1])
WEIGHTS = Rule("at least 0, not all 0", lambda values: min(values) >= 0 < sum(values))


LEVELS = ("stem", "stage1", "stage2", "stage3", "stage4")
"""The maps of the encoder, finest first."""


def _setting(default: Any, doc: str, rule: Rule = ANY) -> Any:
    return field(default=default, metadata={"doc": doc, "rule": rule})


class _Section:
    """Checks its settings when it is made."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            rule = spec.metadata["rule"]
            if not rule.holds(getattr(self, spec.name)):
                raise _wrong(self, spec.name, rule.allowed)


def _wrong(section: _Section, name: str, allowed: str) -> UserError:
    return UserError(f"{name} must be {allowed}, got {getattr(section, name)}")


@dataclass(frozen=True)
class ViewConfig(_Section):
    """How a CT sub-volume becomes two CT views and an X-ray view (CADS method, sections 1 and 2)."""

    window_slices: int = _setting(24, "slices of a sub-volume")
    window_stride: int = _setting(12, "slices between neighbouring sub-volumes", at_least(1))
    wide_volume: int = _setting(320, "width in mm above which only the central part is used in-plane")
    central_fraction: float = _setting(0.8, "fraction of a wide volume that is used in-plane", POSITIVE_FRACTION)
    crop_size: tuple[int, int, int] = _setting((16, 96, 96), "slices, height, width of a CT view before sampling")
    common_crop_scale: tuple[float, float] = _setting(
        (1.4, 1.8), "in-plane edges of the common crop, in crop sizes", RISING
    )
    view_scale: tuple[float, float] = _setting((0.8, 1.2), "in-plane edges of a view, in crop sizes", RISING)
    mirror_probability: float = _setting(0.8, "probability of mirroring, for each axis", FRACTION)
    intensity_window: tuple[float, float] = _setting(
        tuple(map(float, CLIP_HU)), "HU that the encoder sees, as -1 to 1; what lies beyond is clipped", WINDOW
    )
    random_window_probability: float = _setting(
        0.0, "probability of showing a CT view in a narrower, random window", FRACTION
    )
    xray: str = _setting(
        "scan",
        "what the X-ray view shows: the whole scan, or the slices and columns that the CT views are cut from",
        one_of("scan", "local"),
    )
    intensity: str = _setting(
        "published", "strength of the intensity augmentation", one_of("published", "weak", "none")
    )
    uniform_sampling: bool = _setting(True, "keep one patch in four of each CT view")
    sampling_patch_size: tuple[int, int, int] = _setting((4, 8, 8), "slices, height, width of a sampled patch", BLOCK)

    def check_views(self) -> None:
        """Whether CT views can be cut from a sub-volume, sampled, and seen by the encoder.

        Raises:
            UserError: they cannot.
        """
        if self.window_slices < self.crop_size[0]:
            raise _wrong(self, "window_slices", f"at least crop_size's {self.crop_size[0]} slices")
        if self.uniform_sampling and not _can_be_sampled(self.crop_size, self.sampling_patch_size):
            allowed = f"such that crop_size {self.crop_size} is an even grid of such patches"
            raise _wrong(self, "sampling_patch_size", allowed)
        sampled = (1, 2, 2) if self.uniform_sampling else (1, 1, 1)
        least = tuple(size * factor for size, factor in zip(MINIMUM_SIZE[3], sampled, strict=True))
        if any(size < low for size, low in zip(self.crop_size, least, strict=True)):
            raise _wrong(self, "crop_size", f"at least {least}, which the encoder needs")


def _can_be_sampled(crop_size: tuple[int, int, int], patch_size: tuple[int, int, int]) -> bool:
    """Whether a crop is a grid of patches of which one in four can be kept."""
    depth, height, width = (crop // patch for crop, patch in zip(crop_size, patch_size, strict=True))
    is_grid = not any(crop % patch for crop, patch in zip(crop_size, patch_size, strict=True))
    return is_grid and height % 2 == width % 2 == 0 and depth * height * width // 4 % 4 == 0


@dataclass(frozen=True)
class ModelConfig(_Section):
    """Encoder and projection heads (sections 3 and 4)."""

    encoder_size: str = _setting(
        "b1", "size of the PVTv2 encoder; nnUNetTrainerCADS takes b1, as published", one_of(*SIZES)
    )
    drop_path_rate: float = _setting(0.1, "stochastic depth of the encoder's last block", BELOW_ONE)
    head_hidden_dim: int = _setting(2048, "hidden width of the projection heads", at_least(1))
    head_bottleneck_dim: int = _setting(256, "width before the heads' last layer", at_least(1))
    head_out_dim: int = _setting(60_000, "K, the width of the heads' output", at_least(2))
    head_batch_norm: bool = _setting(False, "batch normalisation after the hidden layers of the heads")


@dataclass(frozen=True)
class LossConfig(_Section):
    """Deep self-distillation (section 4)."""

    student_temp: float = _setting(0.1, "student temperature", POSITIVE)
    teacher_temp: tuple[float, float] = _setting(
        (0.04, 0.07), "teacher temperature, first epoch and after warm-up", each(POSITIVE)
    )
    warmup_teacher_temp_epochs: int = _setting(50, "epochs over which the teacher temperature rises")
    center_momentum: float = _setting(0.9, "momentum of the center of the teacher outputs", FRACTION)
    distillation_weight: float = _setting(
        1.0, "weight of the distillation; 0 leaves teacher outputs, heads and X-rays out", at_least(0)
    )
    xray_weight: float = _setting(1.0, "weight of the pairs with the X-ray view; 0 leaves them out", at_least(0))
    stage_weights: tuple[float, float, float, float] = _setting(
        (1.0, 1.0, 1.0, 1.0),
        "weights of the stages' losses, shallow to deep; 0 0 0 1 teaches the last stage alone",
        WEIGHTS,
    )


@dataclass(frozen=True)
class RestorationConfig(_Section):
    """Restoration of corrupted crops, beside the distillation or instead of it (ours)."""

    restoration_weight: float = _setting(0.0, "weight of the restoration; 0 leaves it out", at_least(0))
    restored_crop_size: tuple[int, int, int] = _setting((16, 96, 96), "slices, height, width of a crop to restore")
    corruption: str = _setting(
        "blank",
        "what is done to blocks of a crop (0, noise, shuffled voxels), or to all its intensities (a random curve)",
        one_of("blank", "noise", "shuffle", "curve"),
    )
    corrupted_block: tuple[int, int, int] = _setting((4, 8, 8), "slices, height, width of a corrupted block", BLOCK)
    corrupted_ratio: float = _setting(0.6, "fraction of a crop's blocks that are corrupted", POSITIVE_FRACTION)
    restoration_window: tuple[float, float] = _setting((-256.0, 358.4), "HU that the target is clipped to", WINDOW)
    restoration_error: str = _setting(
        "smooth_l1", "what the loss is of an error in sixths of the window", one_of("smooth_l1", "l1", "l2")
    )


@dataclass(frozen=True)
class PlaceConfig(_Section):
    """Distillation place by place, on the crops that are restored (ours)."""

    token_weight: float = _setting(
        0.0, "weight of a corrupted crop's features against the teacher's of the sound one, place by place", at_least(0)
    )
    ray_weight: float = _setting(
        0.0,
        "weight of the features of a crop's X-ray against the teacher's of the crop along the same rays",
        at_least(0),
    )


@dataclass(frozen=True)
class PointConfig(_Section):
    """Contrast of points in pairs of crops (ours)."""

    point_weight: float = _setting(0.0, "weight of the contrast of points; 0 leaves it out", at_least(0))
    point_crop_size: tuple[int, int, int] = _setting((16, 96, 96), "slices, height, width of the crops of a pair")
    point_count: int = _setting(256, "points of a pair, each to be told from the others", at_least(2))
    point_rotation: tuple[float, float, float] = _setting(
        (30.0, 15.0, 15.0),
        "degrees by which a crop is turned at most, about the axes of slices, rows and columns",
        ANGLE,
    )
    point_scale: tuple[float, float] = _setting((0.78, 1.28), "voxels of the scan per voxel of a crop", RISING)
    point_temp: float = _setting(0.1, "temperature of the softmax over the points of a pair", POSITIVE)
    point_level_weights: tuple[float, float, float, float, float] = _setting(
        (1.0, 1.0, 1.0, 1.0, 0.0), "weights of the losses of stem and stages 1 to 4", WEIGHTS
    )

    @property
    def level_weights(self) -> dict[str, float]:
        """The weights of the levels that have one, by name."""
        weights = zip(LEVELS, self.point_level_weights, strict=True)
        return {name: weight for name, weight in weights if weight > 0}


@dataclass(frozen=True)
class OptimConfig(_Section):
    """Optimisation (section 5)."""

    epochs: int = _setting(150, "length of the run", at_least(1))
    batch_size: int = _setting(192, "sub-volumes per step", at_least(1))
    lr: float = _setting(7.5e-4, "peak learning rate per 256 sub-volumes; scaled with batch_size / 256", POSITIVE)
    min_lr: float = _setting(2e-6, "learning rate at the end", at_least(0))
    warmup_epochs: int = _setting(10, "epochs of linear warm-up of the learning rate")
    weight_decay: tuple[float, float] = _setting(
        (0.04, 0.4), "weight decay, start and end of its cosine", each(at_least(0))
    )
    teacher_momentum: tuple[float, float] = _setting(
        (0.996, 1.0), "momentum of the teacher, start and end", each(FRACTION)
    )
    adam_betas: tuple[float, float] = _setting((0.9, 0.999), "momenta of AdamW's two moments", each(BELOW_ONE))
    adam_eps: float = _setting(1e-8, "what AdamW adds to the root of the second moment", POSITIVE)
    clip_grad: float = _setting(0.3, "largest norm of each tensor's gradient; 0 switches clipping off", at_least(0))
    freeze_last_layer_epochs: int = _setting(3, "epochs during which the heads' last layers stay fixed")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warmup_epochs <= self.epochs:
            allowed = f"between 0 and epochs ({self.epochs}; give --warmup-epochs with a shorter run)"
            raise _wrong(self, "warmup_epochs", allowed)


@dataclass(frozen=True)
class RunConfig(_Section):
    """How a run is carried out; nothing of the method."""

    epoch_samples: int = _setting(0, "sub-volumes that make an epoch; 0: every one of the store once", at_least(0))
    seed: int = _setting(0, "seed of weights, order and views", at_least(0))
    device: str = _setting("auto", "cpu, cuda, cuda:1, ...; auto takes a GPU where there is one")
    amp: str = _setting("none", "autocast of the forward pass; none is float32", one_of("none", "bf16", "fp16"))
    tf32: bool = _setting(False, "let products of float32 keep 10 bits instead of 23, on GPUs that are faster then")
    accumulate: int = _setting(1, "parts in which each process takes its batch, to save memory", at_least(1))
    compile: bool = _setting(False, "compile student and teacher with torch.compile")
    log_every: int = _setting(10, "steps that one line of metrics.jsonl averages", at_least(1))
    num_workers: int = _setting(
        -1,
        "processes that prepare views, per training process; 0: none, -1: one on CPU, on GPU by cores and memory",
        at_least(-1),
    )
    on_nan: str = _setting(
        "stop",
        "at a step whose loss or gradients are not finite: end the run, or skip it",
        one_of("stop", "skip"),
    )
    save_minutes: float = _setting(
        30.0, "write the checkpoint also after so many minutes; 0: after each epoch only", at_least(0)
    )
    max_hours: float = _setting(
        0.0, "save and stop after so many hours, before a queue's limit; 0: no limit", at_least(0)
    )


@dataclass(frozen=True)
class PretrainConfig:
    """The whole configuration of a run."""

    view: ViewConfig = field(default_factory=ViewConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    restoration: RestorationConfig = field(default_factory=RestorationConfig)
    place: PlaceConfig = field(default_factory=PlaceConfig)
    point: PointConfig = field(default_factory=PointConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not (self.distils or self.restores or self.has_points):
            allowed = "above 0 where --restoration-weight and --point-weight are 0"
            raise _wrong(self.loss, "distillation_weight", allowed)
        if self.has_places and not (self.distils and self.restores):
            raise UserError(
                "--token-weight and --ray-weight need crops and heads: give --restoration-weight and "
                "--distillation-weight above 0"
            )
        if self.distils:
            self.view.check_views()
        restored = self.restoration.restored_crop_size
        if self.restores:
            self._check_crop(self.restoration, "restored_crop_size")
        if self.has_points:
            self._check_crop(self.point, "point_crop_size")
        if self.restores and self.view.window_slices < restored[0]:
            raise _wrong(self.view, "window_slices", f"at least restored_crop_size's {restored[0]} slices")

    @staticmethod
    def _check_crop(section: _Section, name: str) -> None:
        if any(size < low for size, low in zip(getattr(section, name), MINIMUM_SIZE[3], strict=True)):
            raise _wrong(section, name, f"at least {MINIMUM_SIZE[3]}, which the encoder needs")

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the losses that the run has, by name."""
        weights = {
            "distillation": self.loss.distillation_weight,
            "restoration": self.restoration.restoration_weight,
            "tokens": self.place.token_weight,
            "rays": self.place.ray_weight,
            "points": self.point.point_weight,
        }
        return {name: weight for name, weight in weights.items() if weight > 0}

    @property
    def distils(self) -> bool:
        """Whether the run distils: CADS itself."""
        return "distillation" in self.weights

    @property
    def restores(self) -> bool:
        """Whether the run restores crops."""
        return "restoration" in self.weights

    @property
    def has_places(self) -> bool:
        """Whether the run distils place by place, too."""
        return not self.weights.keys().isdisjoint(("tokens", "rays"))

    @property
    def has_points(self) -> bool:
        """Whether the run contrasts points."""
        return "points" in self.weights

    @property
    def peak_lr(self) -> float:
        """Peak learning rate of this run's batch size."""
        return self.optim.lr * self.optim.batch_size / 256

    def settings(self) -> dict[str, Any]:
        """Every setting by name, without the sections."""
        return {name: getattr(getattr(self, section), name) for name, (section, _) in SETTINGS.items()}

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
        return dataclasses.replace(self, **sections)


_SECTIONS = {f.name: f.default_factory for f in fields(PretrainConfig)}
SETTINGS: dict[str, tuple[str, dataclasses.Field]] = {
    spec.name: (section, spec) for section, cls in _SECTIONS.items() for spec in fields(cls)
}
"""Every setting by name, with its section and its field."""
