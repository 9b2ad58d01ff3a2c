"""Which parameters share a learning rate and a weight decay."""

from typing import Any

from torch import nn


def parameter_groups(
    network: nn.Module, decoder_lr: float, encoder_lr: float, weight_decay: float, encoder_lr_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Parameter groups of a network with ``.encoder``, as an optimizer takes them.

    Biases and norms (all 1-D tensors) are not decayed. The decoder comes first: nnU-Net logs the first group's rate.

    Args:
        network: a PVTUNet or CoTr; what is not in its encoder counts as its decoder.
        decoder_lr: base rate of what starts from random weights.
        encoder_lr: base rate of the encoder; of its last stage, where it decays.
        weight_decay: of matrices and kernels.
        encoder_lr_decay: factor on the rate from each stage of the encoder to the one before it, and to the stem.
    """
    encoder = list(network.encoder.parameters())
    in_encoder = set(encoder)
    parts = [([p for p in network.parameters() if p not in in_encoder], decoder_lr)]
    if encoder_lr_decay == 1:
        parts.append((encoder, encoder_lr))
    else:
        levels = _by_level(network.encoder)
        parts += [(of_level, encoder_lr * encoder_lr_decay**steps) for steps, of_level in enumerate(reversed(levels))]
    groups = []
    for parameters, rate in parts:
        groups.append({"params": [p for p in parameters if p.ndim > 1], "lr": rate, "weight_decay": weight_decay})
        groups.append({"params": [p for p in parameters if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
    return groups


def _by_level(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters of the stem (the first patch embedding) and of stages 1 to 4, as they are named in the encoder."""
    levels: list[list[nn.Parameter]] = [[] for _ in range(5)]
    for name, parameter in encoder.named_parameters():
        module = name.split(".")[0]
        levels[0 if module == "patch_embed1" else int(module[-1])].append(parameter)
    return levels
