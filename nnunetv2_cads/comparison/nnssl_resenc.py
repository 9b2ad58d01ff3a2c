"""A residual encoder that nnssl pre-trained, such as OpenMind's, as the start of nnU-Net's residual U-Net.

Source: the layout of nnssl's checkpoints (`encoder_file/nnssl.py`). Encoder and stem are loaded, the decoder is not; a
stem of one channel is repeated over the input channels and divided by their number. The optimizer is that of nnssl's
fine-tuning: nnU-Net's SGD at a tenth of its rate, with a warm-up.
Deviation: deep supervision, batch size and augmentation are those of the other arms.
"""

import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunetv2_cads.encoder_file.checksums import CheckpointFileError
from nnunetv2_cads.encoder_file.nnssl import ADAPTATION, WEIGHTS
from nnunetv2_cads.encoder_file.read import ENCODER_VARIABLE, EncoderFileError
from nnunetv2_cads.encoder_file.safe_loading import check_tensor, load_archive
from nnunetv2_cads.training.schedule import EpochSchedule, warmup_poly_factor
from pretraining.system.errors import UserError

ENCODER, STEM_KERNELS = "encoder.", ("stem.convs.0.conv.weight", "stem.convs.0.all_modules.0.weight")
"""Prefix of the encoder with its stem, and the kernels in it that depend on the input channels."""
RESENC_UNET = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
PRESETS: Mapping[str, dict[str, Any]] = {
    "ResEncL": {
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 6,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
        "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
        "n_conv_per_stage_decoder": [1] * 5,
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
}
"""Networks that nnssl names without their parts: nnU-Net's residual encoder L."""
IMPORTED = ["conv_op", "norm_op", "dropout_op", "nonlin"]
INITIAL_LR = 1e-3
WARMUP_FRACTION = 0.05


def resenc_architecture(path: Path) -> dict[str, Any] | None:
    """The ``architecture`` of plans for the network of a checkpoint; None where the file is no such checkpoint."""
    try:
        content = load_archive(path, mmap=True)
    except CheckpointFileError:
        return None  # whoever reads it as an encoder of ours says what is wrong
    plan = content.get(ADAPTATION) if isinstance(content, dict) else None
    network = plan.get("architecture_plans") if isinstance(plan, dict) else None
    if not isinstance(network, dict) or not isinstance(content.get(WEIGHTS), dict):
        return None
    name, kwargs, imported = (network.get(f"arch_{key}") for key in ("class_name", "kwargs", "kwargs_requiring_import"))
    if name in PRESETS:
        kwargs, imported = PRESETS[name], IMPORTED
    elif not str(name).endswith("ResidualEncoderUNet") or not isinstance(kwargs, dict):
        return None
    return {"network_class_name": RESENC_UNET, "arch_kwargs": kwargs, "_kw_requires_import": list(imported or [])}


def check_patch(path: Path, architecture: Mapping[str, Any], patch_size: tuple[int, ...]) -> None:
    """Whether the network can have a patch.

    Raises:
        UserError: an axis is no multiple of the network's strides.
    """
    strides = tuple(int(n) for n in np.prod(np.array(architecture["arch_kwargs"]["strides"]), axis=0))
    if len(strides) != len(patch_size) or any(n % stride for n, stride in zip(patch_size, strides, strict=True)):
        raise UserError(f"{path}: its network needs a patch of multiples of {strides}, not {patch_size}; plan for that")


def load_encoder_and_stem(network: nn.Module, path: Path, input_channels: int) -> None:
    """Load a checkpoint's encoder into a network of its architecture.

    Raises:
        EncoderFileError: it does not fit.
    """
    weights = load_archive(path)[WEIGHTS]
    try:
        state = {
            key.removeprefix(ENCODER): check_tensor(key, value)
            for key, value in weights.items()
            if key.startswith(ENCODER)
        }
        for key in STEM_KERNELS:
            if key in state:
                state[key] = spread(state[key], input_channels)
        network.encoder.load_state_dict(state)
    except (CheckpointFileError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise EncoderFileError(f"{path}: its encoder does not fit the network that it names ({reason})") from error


def spread(kernel: Tensor, input_channels: int) -> Tensor:
    """A kernel (O, 1, ...) for several input channels, (O, C, ...): equal channels give the response of one."""
    if kernel.shape[1] != 1:
        return kernel
    return kernel.repeat_interleave(input_channels, 1) / input_channels


class NnsslResEncTrainer(nnUNetTrainer):
    """nnU-Net's trainer from the checkpoint that the environment variable ``nnUNet_cads_encoder`` names."""

    def initialize(self) -> None:
        """Build everything, and load the encoder; a checkpoint of the training, where there is one, replaces it."""
        self.initial_lr = INITIAL_LR
        super().initialize()
        network = getattr(self.network, "_orig_mod", self.network)
        load_encoder_and_stem(network, Path(os.environ[ENCODER_VARIABLE]), self.num_input_channels)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, EpochSchedule]:
        """nnU-Net's SGD, with a linear warm-up before the polynomial decay."""
        optimizer, _ = super().configure_optimizers()
        factor = functools.partial(
            warmup_poly_factor,
            num_epochs=self.num_epochs,
            warmup_epochs=math.ceil(WARMUP_FRACTION * self.num_epochs),
        )
        return optimizer, EpochSchedule(optimizer, (factor,))
