"""What an encoder file says of its pre-training: the fields that are compared with plans, and which values they take.

A record comes with a file from anywhere. Whatever is used later is checked here, where it is read.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nnunetv2_cads.encoder_file.safe_files import CheckpointFileError

FORMAT_VERSION = 1
ARCHITECTURE = "PVTv2-b1"
_LARGEST = 1e6
"""Millimetres or HU; no scan and no scanner has more."""


def checked_record(record: Any) -> dict[str, Any]:
    """What of a record can be used and shown: valid known fields, and short plain values under other short names.

    Raises:
        CheckpointFileError: a known field is there and has another kind of value than it must have.
    """
    record = record if isinstance(record, dict) else {}
    for name, (is_valid, allowed) in FIELDS.items():
        if name in record and not is_valid(record[name]):
            value = repr(record[name]) if _is_plain(record[name]) else f"a value of type {type(record[name]).__name__}"
            raise CheckpointFileError(f"says {name} = {value} of its pre-training, where {allowed} is needed")
    return {key: value for key, value in record.items() if isinstance(key, str) and _is_plain(key) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    """Whether a value can be shown to a user as it is."""
    if isinstance(value, list):
        return len(value) <= 8 and all(not isinstance(part, list) and _is_plain(part) for part in value)
    if isinstance(value, str):
        return len(value) <= 80 and value.isprintable()
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def _is_number(value: Any, above: float = -_LARGEST) -> bool:
    return type(value) in (int, float) and above < value < _LARGEST  # neither NaN nor a number too long to compute with


def _is_spacing(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(mm, above=0) for mm in value)


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]


FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format_version": (
        lambda value: type(value) is int and value == FORMAT_VERSION,
        f"{FORMAT_VERSION} (a later one needs a later nnunetv2-cads)",
    ),
    "architecture": (lambda value: isinstance(value, str) and value == ARCHITECTURE, repr(ARCHITECTURE)),
    "axes": (lambda value: isinstance(value, str) and sorted(value) == ["x", "y", "z"], "an order of z, y and x"),
    "spacing_mm": (_is_spacing, "a list of three numbers above 0"),
    "clip_hu": (_is_range, "a list of two numbers, the smaller one first,"),
    "intensity_scale_hu": (lambda value: _is_number(value, above=0), "a number above 0"),
}
"""Field -> what its value must be, as a function and in words. All may be absent, as in the published layout."""


PRETRAINING = {"spacing_mm": [1.0, 1.0, 1.0], "clip_hu": [-1024, 1024], "axes": "zyx"}
"""What pre-training saw: volumes in nnU-Net's axis order, HU / 1024 after clipping. Recorded in our plans."""

INTENSITY_SCALE_HU = 1024.0
CT_SCHEME = "CTNormalization"
"""nnU-Net's name of the normalisation that it plans for CT alone."""


def preprocessing_differences(
    record: Mapping[str, Any],
    spacing_mm: Sequence[float],
    normalization_schemes: Sequence[str],
    intensities: Mapping[str, Mapping[str, float]],
    channel_names: Mapping[str, str] | None = None,
) -> list[str]:
    """One sentence per difference, each with both values.

    Args:
        record: of the encoder file; what it leaves out, as the published layout does, is CADS's (`PRETRAINING`).
        spacing_mm: of the configuration, three values or two.
        normalization_schemes: of the configuration, one per image channel.
        intensities: the plans' ``foreground_intensity_properties_per_channel``.
        channel_names: of dataset.json.
    """
    seen = {**PRETRAINING, "intensity_scale_hu": INTENSITY_SCALE_HU, **record}
    found = []
    for channel, scheme in enumerate(normalization_schemes):
        name = f"Channel {channel}" + (f" ({channel_names[str(channel)]})" if channel_names else "")
        if scheme != CT_SCHEME:
            found.append(f"{name}: the plans have {scheme}, which is not for CT; the encoder saw only CT")
            continue
        shown = [intensities[str(channel)][key] for key in ("percentile_00_5", "percentile_99_5", "mean", "std")]
        expected = [*seen["clip_hu"], 0, seen["intensity_scale_hu"]]
        if not _equal(shown, expected):
            values = f"the plans {_normalisation(shown)}, the encoder's pre-training {_normalisation(expected)}"
            found.append(f"{name}: {values}")
    expected = seen["spacing_mm"][-len(spacing_mm) :]
    if not _equal(spacing_mm, expected):
        found.append(f"Spacing: the plans have {_numbers(spacing_mm)} mm, the encoder saw {_numbers(expected)} mm")
    if seen["axes"] != PRETRAINING["axes"]:
        found.append(f"Axis order: nnU-Net shows {PRETRAINING['axes']}, the encoder saw {seen['axes']}")
    return found


def _equal(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-3) for x, y in zip(a, b, strict=True))


def _normalisation(values: Sequence[float]) -> str:
    low, high, mean, std = (f"{value:.6g}" for value in values)
    return f"clip to [{low}, {high}] HU, then (HU - {mean}) / {std}"


def _numbers(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
