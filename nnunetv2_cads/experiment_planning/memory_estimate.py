"""Memory that training PVT-UNet or CoTr takes, in closed form.

Source: fitted to `benchmarks/finetune_memory.py`, whose tables are in docs/planning.md; within 8% of every case there.
The planner estimates in float32, as measured on the CPU, and plans with only a part of the target, since nothing was
measured on a GPU: there, CUDA's context and cuDNN's workspaces need memory too, and the last step of PVT-UNet's
decoder, which the CPU takes one sample at a time, takes the whole batch. nnU-Net trains in half precision, which keeps
0.6 to 0.7 of what float32 keeps for the backward pass.

A step peaks at one of two moments: in the decoder's backward pass (grows with the voxels alone), or in the loss, when
all maps are kept and the class scores exist several times (grows with voxels x classes).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nnunetv2_cads.network_architecture import cotr
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES
from nnunetv2_cads.network_architecture.pvt_v2 import MINIMUM_SIZE


def _computed_by_pvt_unet(patch_size: Sequence[int]) -> tuple[int, ...]:
    """What the network computes after it has padded to its minimum and rounded maps of odd size up."""
    dims = len(patch_size)
    stem = STRIDES[dims][0]
    padded = (max(n, least) for n, least in zip(patch_size, MINIMUM_SIZE[dims], strict=True))
    return tuple(stride * math.ceil(n / stride) for n, stride in zip(padded, stem, strict=True))


@dataclass(frozen=True)
class Cost:
    """What a training step of a network takes.

    Attributes:
        parameters: of the network; heads and further input channels add less than 1%.
        backward_bytes: per voxel of the batch in the backward pass, float32.
        loss_bytes: per voxel of the batch when the loss is computed, without class scores, float32.
        half_precision: bytes per voxel under autocast to half precision, as a part of those in float32.
        computed_size: the size that a patch has after padding.
    """

    parameters: int
    backward_bytes: int
    loss_bytes: int
    half_precision: float
    computed_size: Callable[[Sequence[int]], tuple[int, ...]]


PVT_UNET = {
    3: Cost(32_563_000, 1300, 1040, 0.6, _computed_by_pvt_unet),
    2: Cost(16_959_000, 2250, 2040, 0.6, _computed_by_pvt_unet),
}
COTR = {3: Cost(41_873_000, 2100, 1990, 0.7, cotr.padded_size)}
NETWORKS = {"PVT-UNet": PVT_UNET, "CoTr": {**PVT_UNET, **COTR}}
"""Cost by name and number of dimensions. CoTr has no network for slices: where it is planned for, 2d is PVT-UNet's."""

BYTES_PER_PARAMETER = 16
"""Weight, gradient and AdamW's two moments in float32, also where the rest is in half precision."""

FIXED_BYTES = 100_000_000
"""Of workspaces, independent of the patch."""

BYTES_PER_CLASS = 20
"""Per voxel and class when the loss is computed: scores of all resolutions, softmax, logarithm and gradients."""

BYTES_PER_CHANNEL = 8
"""Per voxel and input channel."""

PLANNED_SHARE = 0.7
"""Part of the memory that a plan may use; the rest is for what it leaves out. Chosen, not measured on a GPU."""


def training_bytes(
    patch_size: Sequence[int],
    batch_size: int,
    input_channels: int,
    num_classes: int,
    half_precision: bool = False,
    network: str = "PVT-UNet",
) -> int:
    """Peak bytes of a training step with deep supervision and AdamW.

    Args:
        patch_size: (D, H, W) or (H, W) in voxels.
        batch_size: patches per step.
        input_channels: of the images.
        num_classes: output channels.
        half_precision: nnU-Net's autocast instead of float32.
        network: a key of `NETWORKS`.
    """
    cost = NETWORKS[network][len(patch_size)]
    per_patch = _bytes_per_patch(cost, patch_size, input_channels, num_classes, half_precision)
    return _constant_bytes(cost) + batch_size * per_patch


def largest_batch_size(
    target_bytes: int, patch_size: Sequence[int], input_channels: int, num_classes: int, network: str = "PVT-UNet"
) -> int:
    """Patches whose step in float32 takes at most the planned share of ``target_bytes``; 0 if not even one does."""
    cost = NETWORKS[network][len(patch_size)]
    left = PLANNED_SHARE * target_bytes - _constant_bytes(cost)
    return max(0, int(left) // _bytes_per_patch(cost, patch_size, input_channels, num_classes, False))


def _constant_bytes(cost: Cost) -> int:
    return BYTES_PER_PARAMETER * cost.parameters + FIXED_BYTES


def _bytes_per_patch(
    cost: Cost, patch_size: Sequence[int], input_channels: int, num_classes: int, half_precision: bool
) -> int:
    backward = cost.backward_bytes + BYTES_PER_CHANNEL * input_channels
    loss = cost.loss_bytes + BYTES_PER_CHANNEL * input_channels + BYTES_PER_CLASS * num_classes
    voxels = math.prod(cost.computed_size(patch_size))
    return math.ceil(voxels * max(backward, loss) * (cost.half_precision if half_precision else 1))
