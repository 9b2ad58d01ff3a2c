"""What pre-training showed the encoder, and how plans differ from it. Plain values alone, no torch and no nnU-Net."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

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
