"""Which parameters share a learning rate and a weight decay."""

from typing import Any

from torch import nn


def parameter_groups(
    network: nn.Module, decoder_lr: float, encoder_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of a network with ``.encoder`` and ``.decoder``, as an optimizer takes them.

    Biases and norms (all 1-D tensors) are not decayed. The decoder comes first: nnU-Net logs the first group's rate.

    Args:
        network: a PVTUNet.
        decoder_lr: base rate of what starts from random weights.
        encoder_lr: base rate of the encoder.
        weight_decay: of matrices and kernels.
    """
    groups = []
    for part, rate in ((network.decoder, decoder_lr), (network.encoder, encoder_lr)):
        parameters = list(part.parameters())
        groups.append({"params": [p for p in parameters if p.ndim > 1], "lr": rate, "weight_decay": weight_decay})
        groups.append({"params": [p for p in parameters if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
    return groups
