"""What DiRA's networks see of a view: augmented intensities, then boxes cut out or exchanged.

Paper and source: `dira.py`; probabilities, numbers and edges are the published ones of 2D views of 224 pixels.
Deviations: a box has the published shares of a view's height and width, and along the slices as many voxels as an edge
in the plane, but no more than the view has: voxels are cubic, as pixels are square, and with the same share of the few
slices a box would hold next to nothing. That boxes around which all is cut out end as early as others is our reading.
Black, 0 of intensities from 0 to 1, is -1 here.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pretraining.views.intensity import INTENSITY_AUGMENTATIONS

BLACK = -1.0
PUBLISHED_SIZE = 224
CUT_OUT_EDGES, KEPT_EDGES, EXCHANGED_EDGES = (10, 70), (154, 174), (10, 15)
"""Shortest and longest, in pixels of `PUBLISHED_SIZE`."""
MOST_BOXES, STOP_PROBABILITY = 10, 0.1
"""After each box there may be no more."""
EXCHANGES = 10

Box = tuple[slice, ...]


def corrupt(views: Tensor, rng: np.random.Generator) -> Tensor:
    """What the networks see of views (B, 1, D, H, W) in [-1, 1]; a copy."""
    augment = INTENSITY_AUGMENTATIONS["weak"][0]
    seen = [augment(view.clone(), rng, torch.clone) for view in views[:, 0]]
    for view in seen:
        distort = _draw(rng)
        if distort:
            distort(view, rng)
    return torch.stack(seen)[:, None]


def cut_out(view: Tensor, rng: np.random.Generator) -> None:
    """Blacken boxes of a view (D, H, W)."""
    for box in draw_boxes(view.shape, CUT_OUT_EDGES, rng):
        view[box] = BLACK


def cut_out_around(view: Tensor, rng: np.random.Generator) -> None:
    """Blacken all of a view (D, H, W) but boxes."""
    black = torch.ones_like(view, dtype=torch.bool)
    for box in draw_boxes(view.shape, KEPT_EDGES, rng):
        black[box] = False
    view[black] = BLACK


def exchange(view: Tensor, rng: np.random.Generator) -> None:
    """Let boxes of a view (D, H, W) exchange what they hold, pair after pair."""
    for _ in range(EXCHANGES):
        edges = draw_edges(view.shape, EXCHANGED_EDGES, rng)
        one, other = (place(edges, view.shape, rng) for _ in range(2))
        held = view[one].clone()
        view[one] = view[other].clone()  # they may overlap
        view[other] = held


DISTORTIONS: tuple[tuple[float, Callable[[Tensor, np.random.Generator], None] | None], ...] = (
    (0.30, cut_out),
    (0.05, cut_out_around),
    (0.30, exchange),
    (0.35, None),
)
"""Of which a view has one, with these probabilities."""


def _draw(rng: np.random.Generator) -> Callable[[Tensor, np.random.Generator], None] | None:
    probabilities, distortions = zip(*DISTORTIONS, strict=True)
    return distortions[rng.choice(len(distortions), p=probabilities)]


def draw_boxes(shape: tuple[int, ...], limits: tuple[int, int], rng: np.random.Generator) -> list[Box]:
    """One to `MOST_BOXES` boxes of a view of (D, H, W), with edges within ``limits`` of `PUBLISHED_SIZE`."""
    boxes = []
    for _ in range(MOST_BOXES):
        boxes.append(place(draw_edges(shape, limits, rng), shape, rng))
        if rng.random() < STOP_PROBABILITY:
            break
    return boxes


def draw_edges(shape: tuple[int, ...], limits: tuple[int, int], rng: np.random.Generator) -> list[int]:
    """Edges of a box in voxels, each drawn on its own."""
    _, height, width = shape
    shares = rng.uniform(*limits, size=3) / PUBLISHED_SIZE
    whole = (height, height, width)
    return [min(max(round(s * of), 1), size) for s, of, size in zip(shares, whole, shape, strict=True)]


def place(edges: list[int], shape: tuple[int, ...], rng: np.random.Generator) -> Box:
    """A box of these edges anywhere in a view of (D, H, W)."""
    starts = [int(rng.integers(size - edge + 1)) for edge, size in zip(edges, shape, strict=True)]
    return tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))
