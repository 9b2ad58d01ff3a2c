"""Loading the encoder file that the environment variable names into the network."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunetv2_cads.encoder_file.read import (
    ENCODER_VARIABLE,
    EncoderFileError,
    MatchReport,
    compare_encoder_state,
    read_encoder_file,
)
from nnunetv2_cads.encoder_file.record import EncoderRecord
from nnunetv2_cads.network_architecture.pvt_v2 import PVTv2Encoder


@dataclass(frozen=True)
class LoadedEncoder:
    """What was loaded into the network.

    Attributes:
        path: of the encoder file.
        sha256: of that file.
        record: of its pre-training.
        report: the keys that matched. An encoder for one dimension leaves the other's as 'unexpected'.
        inflated: keys whose single input channel was spread over several.
    """

    path: Path
    sha256: str
    record: EncoderRecord
    report: MatchReport
    inflated: tuple[str, ...]


def find_encoder_file(plans: Mapping[str, Any]) -> Path:
    """The file that the environment variable names, or else plans that were made for a checkpoint (``ptPlans__*`` of
    nnU-Net's development version).

    Args:
        plans: content of the plans file.

    Raises:
        EncoderFileError: neither names a file.
    """
    planned_for = plans.get("pretrain_info")
    value = os.environ.get(ENCODER_VARIABLE) or (planned_for or {}).get("checkpoint_path")
    if not value:
        raise EncoderFileError(
            f"{ENCODER_VARIABLE} is not set, but a training with nnUNetTrainerCADS starts from a pre-trained encoder: "
            f"set it to the path of a cads_encoder.pth (export {ENCODER_VARIABLE}=/path/to/cads_encoder.pth), "
            "or train from random weights with -tr nnUNetTrainerCADS_scratch"
        )
    return Path(value)


def load_pretrained_encoder(encoder: PVTv2Encoder, path: Path, image_channels: int) -> LoadedEncoder:
    """Load ``path`` into ``encoder``, completely or not at all.

    Args:
        encoder: of the network.
        path: of the encoder file.
        image_channels: how many of the input channels are images; in a cascade the others are the previous stage's.

    Raises:
        EncoderFileError: the file cannot be read, or does not fill every parameter of the encoder.
    """
    content = read_encoder_file(path)
    if content.size != encoder.size:
        raise EncoderFileError(
            f"{path}: holds a PVTv2-{content.size} encoder, but the network has a PVTv2-{encoder.size}; give an "
            f"encoder file of PVTv2-{encoder.size}"
        )
    state, inflated = inflate_input_channels(encoder, content.state, image_channels)
    report = compare_encoder_state(encoder, state)
    if not report.matched:
        raise EncoderFileError(
            f"{path}: none of its {len(state)} keys belongs to the {len(encoder.state_dict())} of the PVTv2 encoder; "
            "give a cads_encoder.pth or a checkpoint in the published CADS layout"
        )
    if report.missing or report.mismatched:
        lacking = report.missing + report.mismatched
        advice = "give an encoder of the same architecture and dimension"
        if any("_2D" in key for key in report.missing):
            advice = "it has weights for CT alone; for 2d, pre-train with --preset cads or published"
        raise EncoderFileError(
            f"{path}: {len(lacking)} of the network's {len(encoder.state_dict())} encoder tensors are missing there or "
            f"have another shape (first: {lacking[0]}); {advice}"
        )
    encoder.load_state_dict({key: state[key] for key in report.matched})
    return LoadedEncoder(path, content.sha256, content.record, report, inflated)


def inflate_input_channels(
    encoder: PVTv2Encoder, state: dict[str, Tensor], image_channels: int
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Spread a first convolution of one input channel over the image channels, so that equal images respond as before.

    Further channels, the previous stage's labels in a cascade, start at zero: they change nothing at first and learn
    from the first step on.

    Returns:
        The state with kernels (64, 1, ...) made (64, input_channels, ...) where the encoder has that, and their keys.
    """
    channels = encoder.input_channels
    inflated = {}
    for key, own in encoder.state_dict().items():
        kernel = state.get(key)
        if kernel is None or own.ndim < 3 or kernel.ndim != own.ndim or kernel.shape[1] == own.shape[1]:
            continue
        if kernel.shape[1] == 1 and own.shape[1] == channels:
            inflated[key] = own.new_zeros(own.shape)
            inflated[key][:, :image_channels] = kernel / image_channels
    return {**state, **inflated}, tuple(inflated)
