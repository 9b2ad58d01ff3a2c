"""Memory that training PVT-UNet takes, in closed form.

Source: fitted to `benchmarks/finetune_memory.py`, whose table is in docs/planning.md; within 8% of every case there.
The planner estimates in float32, as measured on the CPU, and plans with only a part of the target, since nothing was
measured on a GPU: there, CUDA's context and cuDNN's workspaces need memory too, and the decoder's last step, which the
CPU takes one sample at a time, takes the whole batch. nnU-Net trains in half precision, which keeps about 0.6 of what
float32 keeps for the backward pass.

A step peaks at one of two moments: in the decoder's backward pass (grows with the voxels alone), or in the loss, when
all maps are kept and the class scores exist several times (grows with voxels x classes).
"""

import math
from collections.abc import Sequence

from nnunetv2_cads.network_architecture.pvt_unet import STRIDES
from nnunetv2_cads.network_architecture.pvt_v2 import MINIMUM_SIZE

PARAMETERS = {3: 32_563_000, 2: 16_959_000}
"""Of the network, by number of dimensions; heads and further input channels add less than 1%."""

BYTES_PER_PARAMETER = 16
"""Weight, gradient and AdamW's two moments in float32, also where the rest is in half precision."""

FIXED_BYTES = 100_000_000
"""Of workspaces, independent of the patch."""

BACKWARD_BYTES = {3: 1300, 2: 2250}
"""Per voxel of the batch, float32, by number of dimensions."""

LOSS_BYTES = {3: 1040, 2: 2040}
"""Per voxel of the batch when the loss is computed, without class scores."""

BYTES_PER_CLASS = 20
"""Per voxel and class when the loss is computed: scores of all resolutions, softmax, logarithm and gradients."""

BYTES_PER_CHANNEL = 8
"""Per voxel and input channel."""

HALF_PRECISION = 0.6
"""Bytes per voxel under autocast to half precision, as a part of those in float32."""

PLANNED_SHARE = 0.7
"""Part of the memory that a plan may use; the rest is for what it leaves out. Chosen, not measured on a GPU."""


def training_bytes(
    patch_size: Sequence[int], batch_size: int, input_channels: int, num_classes: int, half_precision: bool = False
) -> int:
    """Peak bytes of a training step with deep supervision and AdamW.

    Args:
        patch_size: (D, H, W) or (H, W) in voxels.
        batch_size: patches per step.
        input_channels: of the images.
        num_classes: output channels.
        half_precision: nnU-Net's autocast instead of float32.
    """
    dims = len(patch_size)
    return _constant_bytes(dims) + batch_size * _bytes_per_patch(
        patch_size, input_channels, num_classes, half_precision
    )


def largest_batch_size(target_bytes: int, patch_size: Sequence[int], input_channels: int, num_classes: int) -> int:
    """Patches whose step in float32 takes at most the planned share of ``target_bytes``; 0 if not even one does."""
    left = PLANNED_SHARE * target_bytes - _constant_bytes(len(patch_size))
    return max(0, int(left) // _bytes_per_patch(patch_size, input_channels, num_classes, False))


def _constant_bytes(dims: int) -> int:
    return BYTES_PER_PARAMETER * PARAMETERS[dims] + FIXED_BYTES


def _bytes_per_patch(patch_size: Sequence[int], input_channels: int, num_classes: int, half_precision: bool) -> int:
    dims = len(patch_size)
    backward = BACKWARD_BYTES[dims] + BYTES_PER_CHANNEL * input_channels
    loss = LOSS_BYTES[dims] + BYTES_PER_CHANNEL * input_channels + BYTES_PER_CLASS * num_classes
    voxels = _computed_voxels(patch_size)
    return math.ceil(voxels * max(backward, loss) * (HALF_PRECISION if half_precision else 1))


def _computed_voxels(patch_size: Sequence[int]) -> int:
    """Voxels after the network has padded to its minimum and rounded maps of odd size up."""
    dims = len(patch_size)
    stem = STRIDES[dims][0]
    padded = (max(n, least) for n, least in zip(patch_size, MINIMUM_SIZE[dims], strict=True))
    return math.prod(stride * math.ceil(n / stride) for n, stride in zip(padded, stem, strict=True))
