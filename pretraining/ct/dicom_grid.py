"""Where the slices of a DICOM series lie: the line through their positions, and whether they are evenly spaced."""

import numpy as np

GAP_TOLERANCE = 0.1
"""How far a gap may be from the usual one, as a fraction."""
LARGEST_UNIT = 0.81
"""Of rounding, as a part of the spacing: with a larger one, a missing slice beside an end passes for rounding."""
MAX_DECIMALS = 3
NUMBER_TOLERANCE_MM = 1e-4


def step_mm(positions: np.ndarray) -> np.ndarray:
    """The vector from slice to slice, (3,) in mm: of all positions, (slices, 3) in order, by least squares."""
    index = np.arange(len(positions)) - (len(positions) - 1) / 2
    return index @ (positions - positions[0]) / (index @ index)


def rounding_mm(positions: np.ndarray) -> float:
    """How far rounding to the decimals that the positions have can move one from where it was."""
    return float(np.linalg.norm(_rounded_to(positions))) / 2


def uneven_gap(positions: np.ndarray, normal: np.ndarray) -> int | None:
    """The gap that is furthest from the usual one, by the index of the slice before it; None where all are even.

    They are even where each is near the usual one, or where rounding to the decimals that the positions have makes
    them differ. A missing slice is no rounding: it shifts all that follow by a whole gap.

    Args:
        positions: (slices, 3) in mm, in order along the patient.
        normal: (3,) of the slices' plane, of length 1.
    """
    places = positions @ normal
    gaps = np.abs(np.diff(places))
    usual = float(np.median(gaps))
    worst = int(np.argmax(np.abs(gaps - usual)))
    if usual > 0 and abs(gaps[worst] - usual) <= GAP_TOLERANCE * usual:
        return None
    if np.isfinite(places).all() and _is_rounded_line(places, float(np.abs(normal) @ _rounded_to(positions))):
        return None
    return worst  # also where one is NaN


def _rounded_to(positions: np.ndarray) -> np.ndarray:
    """The unit in mm, along x, y and z, to which the coordinates are rounded; 0 where they are not."""
    units = np.zeros(3)
    for axis, column in enumerate(positions.T):
        for decimals in range(MAX_DECIMALS + 1):
            if np.allclose(column, np.round(column, decimals), rtol=0, atol=NUMBER_TOLERANCE_MM):
                # Coordinates that do not change say nothing of rounding, and need none.
                units[axis] = 10.0**-decimals if np.ptp(column) > 0 else 0
                break
    return units


def _is_rounded_line(places: np.ndarray, unit: float) -> bool:
    """Whether one even spacing, of which every place is rounded to ``unit``, gives these places.

    Where the spacing is hardly more than the unit, a missing slice and rounding look alike, which is no line then.
    """
    from scipy.optimize import minimize_scalar  # slow to load, and hardly ever needed

    index = np.arange(len(places))

    def spread(spacing: float) -> float:
        return float(np.ptp(places - spacing * index))

    middle = float(np.polyfit(index, places, 1)[0])
    # Rounded multiples of one number are apart by one of two neighbouring multiples of the unit.
    most = unit + NUMBER_TOLERANCE_MM
    if not 0 < unit <= LARGEST_UNIT * abs(middle) or np.ptp(np.diff(places)) > most:
        return False
    # The spread is convex in the spacing.
    best = minimize_scalar(spread, bounds=(middle - unit, middle + unit), method="bounded", options={"xatol": 1e-9})
    return best.fun <= most
