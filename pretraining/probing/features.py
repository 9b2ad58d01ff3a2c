"""Frozen features of an encoder: per voxel from all its maps, and pooled over a sub-volume or a radiograph."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_cads.encoder_file.read import load_encoder, read_encoder_file
from nnunetv2_cads.encoder_file.record import CLIP_HU, INTENSITY_SCALE_HU
from nnunetv2_cads.network_architecture import PVTv2Encoder
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES as STEP_STRIDES
from nnunetv2_cads.network_architecture.pvt_v2 import MINIMUM_SIZE
from pretraining.config import ViewConfig
from pretraining.method.diagnostics import spread_and_rank
from pretraining.store.store import Store
from pretraining.views.make_views import read_box, resize_in_plane, xray_view
from pretraining.views.subvolumes import SubVolumes

STRIDES = np.cumprod(STEP_STRIDES[3], axis=0).tolist()
"""Of the encoder's five maps, relative to its input."""
MAPS = ("stem", "stage1", "stage2", "stage3", "stage4")


def load_frozen(source: str) -> PVTv2Encoder:
    """An encoder in eval mode: of a file (`cads_encoder.pth`, or a run's checkpoint: its teacher), or random weights.

    ``source``: the file, or ``random`` or ``random:SEED``.
    """
    name, _, seed = source.partition(":")
    torch.manual_seed(int(seed or 0) if name == "random" else 0)
    encoder = PVTv2Encoder()
    if name != "random":
        load_encoder(encoder, read_encoder_file(Path(source)).state)
    return encoder.eval().requires_grad_(False)


@torch.no_grad()
def voxel_features(encoder: PVTv2Encoder, image_hu: np.ndarray, voxels: np.ndarray) -> list[Tensor]:
    """Features of some voxels, from each of the five maps by trilinear interpolation.

    Args:
        encoder: in eval mode.
        image_hu: (D, H, W), seen whole; its last voxels are repeated where the encoder needs more.
        voxels: (N, 3) integer indices.

    Returns:
        Five tensors (N, channels).
    """
    image = torch.from_numpy(np.clip(image_hu, *CLIP_HU).astype(np.float32) / INTENSITY_SCALE_HU)
    missing = [max(0, least - n) for n, least in zip(image.shape, MINIMUM_SIZE[3], strict=True)]
    image = F.pad(image[None, None], [edge for m in reversed(missing) for edge in (0, m)], mode="replicate")
    maps = encoder(image)
    return [sample_map(m[0], torch.from_numpy(voxels), stride) for m, stride in zip(maps, STRIDES, strict=True)]


def sample_map(feature_map: Tensor, voxels: Tensor, stride: Sequence[int]) -> Tensor:
    """(C, d, h, w) at input voxels (N, 3) -> (N, C).

    The encoder's convolutions have odd kernels, padded by half: element i lies over the input's voxel stride * i.
    """
    size = torch.tensor(feature_map.shape[1:])
    place = voxels / torch.tensor(stride)
    unit = 2 * place / (size - 1).clamp_min(1) - 1
    grid = unit.flip(-1).float()[None, None, None]  # grid_sample wants x, y, z
    sampled = F.grid_sample(feature_map[None], grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled[0, :, 0, 0].T


@dataclass(frozen=True)
class PooledFeatures:
    """Features pooled over space, of the encoder's last stage.

    Attributes:
        ct: (sub-volumes, C).
        scan: (sub-volumes,) which scan each comes from.
        xray: (scans, C).
        ranks: effective rank of ``ct`` in each of the stages 1 to 4.
    """

    ct: Tensor
    scan: Tensor
    xray: Tensor
    ranks: list[float]


@torch.no_grad()
def pooled_features(encoder: PVTv2Encoder, store: Store, view: ViewConfig, windows: int) -> PooledFeatures:
    """Pooled features of ``windows`` evenly spaced sub-volumes of every scan of a store, and of its radiograph.

    A sub-volume shows its central crop of ``view.crop_size``, neither augmented nor sampled.
    """
    subvolumes = SubVolumes(store, view)
    by_scan: dict[str, list[int]] = {name: [] for name in store.ids}
    for i in range(len(subvolumes)):
        by_scan[subvolumes[i].volume_id].append(i)
    stages: list[list[Tensor]] = [[] for _ in range(4)]
    scan, xray = [], []
    for number, name in enumerate(store.ids):
        chosen = np.unique(np.linspace(0, len(by_scan[name]) - 1, windows + 2).round()[1:-1]).astype(int)
        images = torch.stack([_central_crop(store, subvolumes[by_scan[name][i]], view) for i in chosen])
        for features, stage_map in zip(stages, encoder(images[:, None])[1:], strict=True):
            features.append(stage_map.flatten(2).mean(2))
        scan += [number] * len(chosen)
        picture = xray_view(store.radiograph(name), view.crop_size[1:])
        xray.append(encoder(picture[None])[-1].flatten(2).mean(2))
    pooled = [torch.cat(features) for features in stages]
    return PooledFeatures(pooled[-1], torch.tensor(scan), torch.cat(xray), [effective_rank(x) for x in pooled])


def _central_crop(store: Store, subvolume, view: ViewConfig) -> Tensor:
    limits = (subvolume.slices, subvolume.rows, subvolume.columns)
    box = []
    for (low, high), size in zip(limits, view.crop_size, strict=True):
        start = (low + high - size) // 2
        box.append((start, start + size))
    hu = read_box(store, subvolume.volume_id, box, list(limits))
    return resize_in_plane(hu, view.crop_size[1:]) / INTENSITY_SCALE_HU


def effective_rank(features: Tensor) -> float:
    """In how many directions (N, C) features spread, as pre-training records it of its batches."""
    mean = features.double().mean(0)
    centred = features - mean
    return spread_and_rank(mean, centred.T @ centred / len(features))[1].item()
