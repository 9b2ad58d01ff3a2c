"""The discriminator of DiRA: a patch discriminator with least squares, and its own optimizer.

Paper and source: `dira.py`; least squares as in LSGAN, Mao et al., ICCV 2017; patches as in pix2pix, Isola et al., CVPR
2017. It sees one image, not the distorted view beside it.
Deviations: 3D convolutions; the first stride leaves the slices alone, as views have a quarter to a sixth as many as
rows. Convolutions before a norm have no bias, which the norm would take away.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (1, 64, 128, 256, 512)
STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1))
NEGATIVE_SLOPE = 0.2
LR, BETAS = 2e-4, (0.5, 0.999)


class Discriminator(nn.Module):
    """Scores patches of a view: 1 for sound, 0 for restored.

    Its weights take a gradient within `learn` alone, so that no other optimizer has them. What is saved of it has its
    optimizer, too.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, ((inner, outer), stride) in enumerate(zip(itertools.pairwise(CHANNELS), STRIDES, strict=True)):
            layers.append(nn.Conv3d(inner, outer, 3, stride, padding=1, bias=i == 0))
            if i:
                layers.append(nn.InstanceNorm3d(outer))
            layers.append(nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True))
        layers.append(nn.Conv3d(CHANNELS[-1], 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv3d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.optimizer = torch.optim.Adam(self.parameters(), LR, BETAS)
        self.requires_grad_(False)

    def forward(self, views: Tensor) -> Tensor:
        """Views (B, 1, D, H, W) in [0, 1] -> scores (B, 1, D', H', W') in float32."""
        return self.layers(views).float()

    def loss_of_fooling(self, restored: Tensor) -> Tensor:
        """How far restored views (B, 1, D, H, W) are from being taken for sound ones, ()."""
        return square_error(self(restored), 1.0)

    def learn(self, restored: Tensor, sound: Tensor) -> None:
        """One step on views (B, 1, D, H, W) without gradients."""
        self.requires_grad_(True)
        loss = (square_error(self(sound), 1.0) + square_error(self(restored), 0.0)) / 2
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.requires_grad_(False)

    def get_extra_state(self) -> dict:
        """The optimizer's."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        """Resume the optimizer."""
        self.optimizer.load_state_dict(state)


def square_error(scores: Tensor, wanted: float) -> Tensor:
    """Mean squared distance of scores from one number, ()."""
    return F.mse_loss(scores, torch.full_like(scores, wanted))
