"""What an encoder file says of its pre-training: the fields that are compared with plans, and which values they take.

A record comes with a file from anywhere. Whatever is used later is checked here, where it is read.
"""

from collections.abc import Callable
from typing import Any

from nnunetv2_cads.network_architecture.checkpoint_files import CheckpointFileError

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
