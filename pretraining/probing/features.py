"""Frozen features of an encoder: per voxel from all its maps, and pooled over a sub-volume or a radiograph."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_cads.encoder_file.read import EncoderFileError, load_encoder, read_encoder_file
from nnunetv2_cads.encoder_file.record import PRETRAINING, EncoderRecord, completed
from nnunetv2_cads.network_architecture import PVTv2Encoder
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES as STEP_STRIDES
from nnunetv2_cads.network_architecture.pvt_v2 import MINIMUM_SIZE
from pretraining.config import ViewConfig
from pretraining.method.diagnostics import spread_and_rank
from pretraining.store.store import Store
from pretraining.system.errors import UserError
from pretraining.views.make_views import read_box, resize_in_plane, xray_view
from pretraining.views.subvolumes import SubVolume, SubVolumes

STRIDES = np.cumprod(STEP_STRIDES[3], axis=0).tolist()
"""Of the encoder's five maps, relative to its input."""
MAPS = ("stem", "stage1", "stage2", "stage3", "stage4")
SUB_VOLUMES = 3
"""Of each volume of a store."""


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder to probe.

    Attributes:
        network: in eval mode, without gradients.
        saw: the record of its pre-training; None for random weights.
    """

    network: PVTv2Encoder
    saw: EncoderRecord | None = None

    def shown(self, hu: Tensor) -> Tensor:
        """HU as its pre-training saw them."""
        saw = self.saw or PRETRAINING
        return (hu.clamp(*saw.clip_hu) - saw.intensity_center_hu) / saw.intensity_scale_hu


def load_frozen(source: str, for_radiographs: bool = True) -> FrozenEncoder:
    """An encoder to probe.

    Args:
        source: an encoder file, a run's checkpoint (its teacher), or ``random`` or ``random:SEED`` for random weights.
        for_radiographs: whether it must have weights for radiographs, too, which one from a fine-tuning lacks.

    Raises:
        UserError: the file holds no encoder, or one that does not fit; or SEED is no number.
    """
    name, _, seed = source.partition(":")
    if name != "random":
        return _read_frozen(source, for_radiographs)
    if not (seed or "0").isdecimal():
        raise UserError(f"{source}: the seed must be a number from 0 up, as in random:1")
    torch.manual_seed(int(seed or 0))
    return FrozenEncoder(PVTv2Encoder().eval().requires_grad_(False))


def _read_frozen(path: str, for_radiographs: bool) -> FrozenEncoder:
    try:
        file = read_encoder_file(path)
    except EncoderFileError as error:
        raise UserError(str(error)) from error
    torch.manual_seed(0)
    encoder = PVTv2Encoder(size=file.size)
    report = load_encoder(encoder, file.state)
    missing = [key for key in report.missing if for_radiographs or "_2D" not in key]
    if missing or report.mismatched:
        wrong = report.mismatched[0] if report.mismatched else f"{missing[0]} is missing"
        advice = "leave --store out" if all("_2D" in key for key in missing) else "give the file of a CADS encoder"
        raise UserError(f"{path}: does not fit the CADS encoder ({wrong}); {advice}")
    saw = completed(file.record)
    if len(set(saw.spacing_mm)) > 1:
        raise UserError(f"{path}: saw voxels of {saw.spacing_mm} mm; only cubic ones can be shown to it")
    return FrozenEncoder(encoder.eval().requires_grad_(False), saw)


@torch.no_grad()
def voxel_features(encoder: FrozenEncoder, image_hu: np.ndarray, voxels: np.ndarray) -> list[Tensor]:
    """Features of some voxels, from each of the five maps by trilinear interpolation.

    Args:
        encoder: to probe.
        image_hu: (D, H, W), seen whole; its last voxels are repeated where the encoder needs more.
        voxels: (N, 3) integer indices.

    Returns:
        Five tensors (N, channels).
    """
    image = encoder.shown(torch.from_numpy(image_hu.astype(np.float32)))
    missing = [max(0, least - n) for n, least in zip(image.shape, MINIMUM_SIZE[3], strict=True)]
    image = F.pad(image[None, None], [edge for m in reversed(missing) for edge in (0, m)], mode="replicate")
    maps = encoder.network(image)
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
    """Features of the encoder's last stage, averaged over space.

    Attributes:
        ct: (sub-volumes, C).
        volume: (sub-volumes,) which volume each is of.
        xray: (volumes, C).
        ranks: effective rank of the sub-volumes' features in each of the stages 1 to 4.
    """

    ct: Tensor
    volume: Tensor
    xray: Tensor
    ranks: list[float]


@torch.no_grad()
def pooled_features(encoder: FrozenEncoder, store: Store, view: ViewConfig) -> PooledFeatures:
    """Features of `SUB_VOLUMES` evenly spaced sub-volumes of every volume of a store, and of its radiograph.

    A sub-volume shows its central crop of ``view.crop_size``, neither augmented nor sampled.
    """
    subvolumes = SubVolumes(store, view)
    by_volume: dict[str, list[int]] = {name: [] for name in store.ids}
    for i in range(len(subvolumes)):
        by_volume[subvolumes[i].volume_id].append(i)
    stages: list[list[Tensor]] = [[] for _ in range(4)]
    volume, xray = [], []
    for number, name in enumerate(store.ids):
        places = np.linspace(0, len(by_volume[name]) - 1, SUB_VOLUMES + 2).round()[1:-1]
        chosen = [subvolumes[by_volume[name][i]] for i in np.unique(places).astype(int)]
        images = encoder.shown(torch.stack([_central_crop_hu(store, subvolume, view) for subvolume in chosen]))
        for features, stage_map in zip(stages, encoder.network(images[:, None])[1:], strict=True):
            features.append(stage_map.flatten(2).mean(2))
        volume += [number] * len(chosen)
        picture = xray_view(store.radiograph(name), view.crop_size[1:])
        xray.append(encoder.network(picture[None])[-1].flatten(2).mean(2))
    pooled = [torch.cat(features) for features in stages]
    return PooledFeatures(pooled[-1], torch.tensor(volume), torch.cat(xray), [effective_rank(x) for x in pooled])


def _central_crop_hu(store: Store, subvolume: SubVolume, view: ViewConfig) -> Tensor:
    limits = (subvolume.slices, subvolume.rows, subvolume.columns)
    box = []
    for (low, high), size in zip(limits, view.crop_size, strict=True):
        start = (low + high - size) // 2
        box.append((start, start + size))
    return resize_in_plane(read_box(store, subvolume.volume_id, box, list(limits)), view.crop_size[1:])


def effective_rank(features: Tensor) -> float:
    """In how many directions (N, C) features spread, as pre-training records it of its batches."""
    mean = features.double().mean(0)
    centred = features - mean
    return spread_and_rank(mean, centred.T @ centred / len(features))[1].item()
