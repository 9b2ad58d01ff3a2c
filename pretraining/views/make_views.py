"""From a sub-volume to two CT views and an X-ray view (CADS method, section 2).

Ours: where both views lie is drawn first, so that only what they show is read from the store; arithmetic is float32;
volumes smaller than a crop are padded with air; every random number comes from the generator passed in, so that a view
depends on its seed alone. Mirroring comes last: resizing and every step of the augmentation treat both directions of
an axis alike, and after uniform sampling a quarter of the voxels is left to move.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_cads.encoder_file.record import CLIP_HU, INTENSITY_SCALE_HU
from pretraining.config import ViewConfig
from pretraining.ct.radiograph import ConstantRadiographError, frontal_radiograph
from pretraining.store.store import Store
from pretraining.views.intensity import INTENSITY_AUGMENTATIONS
from pretraining.views.subvolumes import SubVolume
from pretraining.views.uniform_sampling import draw_patches, gather_patches

PADDING_HU = CLIP_HU[0]
"""Air, in what lies outside of a volume."""

RANDOM_WINDOW_WIDTHS_HU = (150.0, 2048.0)
"""Drawn evenly on a logarithmic scale: from a window of one organ to all."""
RANDOM_WINDOW_MIDDLES_HU = (-150.0, 250.0)
"""Of fat and of contrast agent."""

Box = list[tuple[int, int]]
"""Half-open voxel ranges [start, stop) per axis of a volume; may extend beyond it, where air is assumed."""


class Views(NamedTuple):
    """Of one sub-volume, float32; with a first axis B, of a batch."""

    ct_1: Tensor  # (1, D, H, W) of ``crop_size``, or half of it in-plane with uniform sampling
    ct_2: Tensor
    xray: Tensor  # (1, H, W) of ``crop_size`` in-plane


def make_views(store: Store, subvolume: SubVolume, config: ViewConfig, rng: np.random.Generator) -> Views:
    """Draw the views of a sub-volume."""
    with one_thread():
        return _make_views(store, subvolume, config, rng)


def _make_views(store: Store, subvolume: SubVolume, config: ViewConfig, rng: np.random.Generator) -> Views:
    crop, filled = draw_common_crop(subvolume, config, rng)
    boxes = [draw_view_box(crop, config, rng) for _ in range(2)]
    both = [(min(a[0], b[0]), max(a[1], b[1])) for a, b in zip(*boxes, strict=True)]
    image_hu = read_box(store, subvolume.volume_id, both, filled)
    views = []
    for box, intensity in zip(boxes, INTENSITY_AUGMENTATIONS[config.intensity], strict=True):
        part = tuple(slice(low - least, high - least) for (low, high), (least, _) in zip(box, both, strict=True))
        view = resize_in_plane(image_hu[part], config.crop_size[1:])
        view = show_in_window(view, draw_window(config, rng))
        keep = _draw_sampling_and_mirroring(config, rng)
        views.append((keep(view) if intensity is None else intensity(view, rng, keep))[None])
    # Read anew each time: it costs 0.1 ms, and keeping all of a large store would cost gigabytes.
    radiograph = (
        store.radiograph(subvolume.volume_id)
        if config.xray == "scan"
        else local_radiograph(store, subvolume.volume_id, filled)
    )
    return Views(*views, xray_view(radiograph, config.crop_size[1:]))


def draw_window(config: ViewConfig, rng: np.random.Generator) -> tuple[float, float]:
    """The HU that a view shows: those that the encoder sees, or with some probability a random part of them."""
    low, high = config.intensity_window
    if not config.random_window_probability or rng.random() >= config.random_window_probability:
        return low, high
    width = min(np.exp(rng.uniform(*np.log(RANDOM_WINDOW_WIDTHS_HU))), high - low)
    middle = np.clip(rng.uniform(*RANDOM_WINDOW_MIDDLES_HU), low + width / 2, high - width / 2)
    return float(middle - width / 2), float(middle + width / 2)


def show_in_window(hu: Tensor, window: tuple[float, float]) -> Tensor:
    """HU to -1 ... 1 over the window, clipped beyond it; overwrites ``hu``, which is within `CLIP_HU`."""
    low, high = window
    if window == CLIP_HU:
        return hu.mul_(1 / INTENSITY_SCALE_HU)
    return hu.sub_((low + high) / 2).mul_(2 / (high - low)).clamp_(-1, 1)


def hu_of(shown: Tensor, window: tuple[float, float]) -> Tensor:
    """The HU that `show_in_window` showed, where it did not clip."""
    low, high = window
    return shown * ((high - low) / 2) + (low + high) / 2


def local_radiograph(store: Store, volume_id: str, filled: Box) -> np.ndarray:
    """The radiograph of the common crop's slices and columns, through the whole body; -1 everywhere where that is air.

    Ours: the published X-ray is the same for all sub-volumes of a scan, so it cannot tell where one lies.
    """
    slices, _, columns = (slice(*limits) for limits in filled)
    volume_hu = store.window(volume_id, (slices, slice(None), columns))
    try:
        return frontal_radiograph(volume_hu, store.spacing_mm)
    except ConstantRadiographError:
        return np.full((volume_hu.shape[0], volume_hu.shape[2]), -1, np.float32)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, as workers do anyway, so that sums round alike whatever the number of threads."""
    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)


def draw_common_crop(subvolume: SubVolume, config: ViewConfig, rng: np.random.Generator) -> tuple[Box, Box]:
    """Draw the in-plane crop that both views share.

    Returns:
        The crop, at least ``window_slices`` x ``crop_size`` in-plane, and the part of it that the sub-volume fills.
    """
    filled = [subvolume.slices]
    for (low, high), size in zip((subvolume.rows, subvolume.columns), config.crop_size[1:], strict=True):
        edge = round(size * rng.uniform(*config.common_crop_scale))
        if edge > high - low:
            edge = min(size, high - low)
        start = int(rng.integers(low, high - edge + 1))
        filled.append((start, start + edge))
    crop = []
    for (low, high), least in zip(filled, (config.window_slices, *config.crop_size[1:]), strict=True):
        missing = max(0, least - (high - low))
        crop.append((low - missing // 2, high + missing - missing // 2))
    return crop, filled


def draw_view_box(crop: Box, config: ViewConfig, rng: np.random.Generator) -> Box:
    """Draw where in the common crop a view lies."""
    depth, *in_plane = config.crop_size
    edges = [depth] + [round(size * rng.uniform(*config.view_scale)) for size in in_plane]
    box = []
    for edge, (low, high) in zip(edges, crop, strict=True):
        edge = min(edge, high - low)
        start = int(rng.integers(low, high - edge + 1))
        box.append((start, start + edge))
    return box


def filled_part(box: Box, filled: Box) -> Box:
    """The part of a box that lies within ``filled``; where there is none, an end may be before its start."""
    return [(max(low, first), min(high, end)) for (low, high), (first, end) in zip(box, filled, strict=True)]


def read_box(store: Store, volume_id: str, box: Box, filled: Box) -> np.ndarray:
    """Read a box of a volume, int16 HU, with air in what lies outside of ``filled``."""
    inner = filled_part(box, filled)
    region = tuple(slice(*limits) for limits in inner)
    if inner == box:
        return store.window(volume_id, region)
    image = np.full([high - low for low, high in box], PADDING_HU, np.int16)
    if all(low < high for low, high in inner):
        place = tuple(slice(low - least, high - least) for (low, high), (least, _) in zip(inner, box, strict=True))
        image[place] = store.window(volume_id, region)
    return image


def resize_in_plane(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Linear resize of the last two axes: (N, H, W) of any type -> (N, *size), float32."""
    # Channels last (here: slices), because PyTorch then works on 16 slices at a time: four times faster.
    tensor = torch.from_numpy(image)[None].to(torch.float32, memory_format=torch.channels_last)
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0]


def xray_view(radiograph: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A radiograph (slices, width) in [-1, 1] -> (1, *size), without augmentation."""
    return resize_in_plane(radiograph[None], size)


def _draw_sampling_and_mirroring(config: ViewConfig, rng: np.random.Generator) -> Callable[[Tensor], Tensor]:
    """Draw what is left to do with the voxels of a view (D, H, W), and return the function that does it."""
    mirrored = [axis for axis in range(3) if rng.random() < config.mirror_probability]
    if not config.uniform_sampling:
        return lambda view: view.flip(mirrored)
    kept = draw_patches(config.crop_size, config.sampling_patch_size, rng)
    # NumPy mirrors by negative strides, without a copy
    return lambda view: torch.from_numpy(
        gather_patches(np.flip(view.numpy(), mirrored), config.sampling_patch_size, kept)
    )
