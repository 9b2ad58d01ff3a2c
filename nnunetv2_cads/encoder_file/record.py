"""The record in an encoder file: what its pre-training saw, and how that compares with plans.

A record comes with a file from anywhere, so `EncoderRecord.from_file` checks whatever is used later. Without torch, so
that workers which never need it start quickly.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FORMAT_VERSION = 1
ARCHITECTURE = "PVTv2-b1"
"""Of the published encoder, and what we pre-train."""
ARCHITECTURES = tuple(f"PVTv2-b{number}" for number in range(6))
AXES = "zyx"
"""nnU-Net's order of the axes."""
SPACING_MM = 1.0
CLIP_HU = (-1024, 1024)
INTENSITY_SCALE_HU = 1024
"""As published, the encoder sees HU, clipped to `CLIP_HU`, divided by this."""

CT_SCHEME = "CTNormalization"
"""nnU-Net's name of the normalisation that it plans only for CT."""

_LARGEST = 1e6
"""Millimetres or HU; no scan and no scanner has more."""


class RecordError(ValueError):
    """The record cannot be used; the message says why, without the file's name."""


def _is_number(value: Any, above: float = -_LARGEST) -> bool:
    return type(value) in (int, float) and above < value < _LARGEST  # neither NaN nor a number too long to compute with


def _is_spacing(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(mm, above=0) for mm in value)


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]


def _is_plain(value: Any) -> bool:
    """Whether a value can be shown to a user as it is."""
    if isinstance(value, list):
        return len(value) <= 8 and all(not isinstance(part, list) and _is_plain(part) for part in value)
    if isinstance(value, str):
        return len(value) <= 80 and value.isprintable()
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _checked(is_valid: Callable[[Any], bool], allowed: str) -> Any:
    """A field of a record with its rule, as a function of the value in the file and in words."""
    return field(default=None, metadata={"is_valid": is_valid, "allowed": allowed})


@dataclass(frozen=True)
class EncoderRecord:
    """What a file says of the encoder and its pre-training; None where it says nothing, as in the published layout.

    Attributes:
        format_version: of the file.
        architecture: with the encoder's size.
        axes: order of a volume's axes.
        spacing_mm: of the volumes, along ``axes``.
        clip_hu: lower and upper limit.
        intensity_scale_hu: what HU were divided by.
        intensity_center_hu: what was subtracted from HU before that.
        notes: further names and short plain values (crop size, steps, version, ...), for people to read.
    """

    format_version: int | None = _checked(
        lambda value: type(value) is int and value == FORMAT_VERSION,
        f"{FORMAT_VERSION} (a later one needs a later nnunetv2-cads)",
    )
    architecture: str | None = _checked(
        lambda value: isinstance(value, str) and value in ARCHITECTURES,
        f"one of {ARCHITECTURES[0]!r} to {ARCHITECTURES[-1]!r}",
    )
    axes: str | None = _checked(
        lambda value: isinstance(value, str) and sorted(value) == ["x", "y", "z"], "an order of z, y and x"
    )
    spacing_mm: tuple[float, ...] | None = _checked(_is_spacing, "a list of three numbers above 0")
    clip_hu: tuple[float, ...] | None = _checked(_is_range, "a list of two numbers, the smaller one first,")
    intensity_scale_hu: float | None = _checked(lambda value: _is_number(value, above=0), "a number above 0")
    intensity_center_hu: float | None = _checked(_is_number, "a number")
    notes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_file(cls, content: Any) -> "EncoderRecord":
        """The record from what a file has in its place; what is neither a known field nor a note is left out.

        Raises:
            RecordError: a known field has a value that it cannot have.
        """
        content = content if isinstance(content, dict) else {}
        known = {}
        for name, rule in FIELDS.items():
            if name not in content:
                continue
            value = content[name]
            if not rule["is_valid"](value):
                shown = repr(value) if _is_plain(value) else f"a value of type {type(value).__name__}"
                raise RecordError(f"says {name} = {shown} of its pre-training, where {rule['allowed']} is needed")
            known[name] = tuple(value) if isinstance(value, list) else value
        others = {key: value for key, value in content.items() if isinstance(key, str) and key not in FIELDS}
        return cls(**known, notes={key: value for key, value in others.items() if _is_plain(key) and _is_plain(value)})

    def to_file(self) -> dict[str, Any]:
        """The record as a file holds it: plain values, and nothing for fields that are None."""
        known = {name: getattr(self, name) for name in FIELDS if getattr(self, name) is not None}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in known.items()} | dict(self.notes)

    def with_notes(self, **notes: Any) -> "EncoderRecord":
        """This record with more notes."""
        return dataclasses.replace(self, notes={**self.notes, **notes})


FIELDS = {entry.name: entry.metadata for entry in dataclasses.fields(EncoderRecord) if entry.metadata}
"""Name of each field that is checked -> its rule."""

PRETRAINING = EncoderRecord(FORMAT_VERSION, ARCHITECTURE, AXES, (SPACING_MM,) * 3, CLIP_HU, INTENSITY_SCALE_HU, 0)
"""What our pre-training at 1 mm records; also taken for what a file leaves out."""


def completed(record: EncoderRecord) -> EncoderRecord:
    """A record whose missing fields are those of our pre-training at 1 mm."""
    return dataclasses.replace(PRETRAINING, **{n: getattr(record, n) for n in FIELDS if getattr(record, n) is not None})


NOT_CT, INTENSITIES, SPACING, AXIS_ORDER = "not CT", "intensities", "spacing", "axis order"


@dataclass(frozen=True)
class Difference:
    """What pre-training saw and what plans show.

    Attributes:
        kind: `NOT_CT`, `INTENSITIES`, `SPACING` or `AXIS_ORDER`.
        text: one sentence with both values.
    """

    kind: str
    text: str


def preprocessing_differences(
    record: EncoderRecord,
    spacing_mm: Sequence[float],
    normalization_schemes: Sequence[str],
    intensities: Mapping[str, Mapping[str, float]],
    channel_names: Mapping[str, str] | None = None,
) -> list[Difference]:
    """What differs between an encoder's pre-training and a configuration of nnU-Net's plans.

    Args:
        record: of the encoder file; `PRETRAINING` holds for what it leaves out.
        spacing_mm: of the configuration, three values or two.
        normalization_schemes: of the configuration, one per image channel.
        intensities: the plans' ``foreground_intensity_properties_per_channel``.
        channel_names: of dataset.json.
    """
    saw = completed(record)
    found = []
    for channel, scheme in enumerate(normalization_schemes):
        name = f"Channel {channel} ({channel_names[str(channel)]})" if channel_names else f"Channel {channel}"
        if scheme != CT_SCHEME:
            found.append(
                Difference(NOT_CT, f"{name}: the plans have {scheme}, which is not for CT; the encoder saw only CT")
            )
            continue
        planned = [intensities[str(channel)][key] for key in ("percentile_00_5", "percentile_99_5", "mean", "std")]
        seen = [*saw.clip_hu, saw.intensity_center_hu, saw.intensity_scale_hu]
        if not _equal(planned, seen):
            values = f"the plans {_normalisation(planned)}, the encoder's pre-training {_normalisation(seen)}"
            found.append(Difference(INTENSITIES, f"{name}: {values}"))
    seen = saw.spacing_mm[-len(spacing_mm) :]
    if not _equal(spacing_mm, seen):
        values = f"the plans have {_numbers(spacing_mm)} mm, the encoder saw {_numbers(seen)} mm"
        found.append(Difference(SPACING, f"Spacing: {values}"))
    if saw.axes != AXES:
        found.append(Difference(AXIS_ORDER, f"Axis order: nnU-Net shows {AXES}, the encoder saw {saw.axes}"))
    return found


def _equal(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-3) for x, y in zip(a, b, strict=True))


def _normalisation(values: Sequence[float]) -> str:
    low, high, mean, std = (f"{value:.6g}" for value in values)
    return f"clip to [{low}, {high}] HU, then (HU - {mean}) / {std}"


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
