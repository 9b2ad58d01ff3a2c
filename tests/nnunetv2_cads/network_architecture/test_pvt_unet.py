import functools

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunetv2_cads.network_architecture import PVTUNet
from nnunetv2_cads.network_architecture.decoder import output_sizes
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES

EDGE = st.integers(2, 47)


@functools.cache
def network_of(dims: int, channels: int = 2) -> PVTUNet:
    """In training mode, of three classes."""
    return PVTUNet(channels, 3, {2: nn.Conv2d, 3: nn.Conv3d}[dims])


@settings(max_examples=20)
@given(size=st.one_of(st.tuples(EDGE, EDGE), st.tuples(EDGE, EDGE, EDGE)), channels=st.integers(1, 4))
def test_every_patch_size_works_and_matches_the_labels_of_nnunet(size, channels):
    sizes = output_sizes(size, STRIDES[len(size)])
    scales = [[n / edge for n, edge in zip(s, size, strict=True)] for s in sizes]
    labels = DownsampleSegForDSTransform(scales)(segmentation=torch.zeros(1, *size, dtype=torch.int16))["segmentation"]
    with torch.no_grad():
        outputs = network_of(len(size), channels)(torch.randn(1, channels, *size))
    assert tuple(outputs[0].shape) == (1, 3, *size)
    assert [o.shape[2:] for o in outputs] == [label.shape[1:] for label in labels]
    assert all(torch.isfinite(o).all() for o in outputs)


@pytest.mark.parametrize(
    "size",
    [(2, 2), (7, 3), (29, 28), (33, 47), (2, 2, 2), (3, 9, 2), (14, 28, 28), (15, 29, 29), (17, 33, 45), (5, 64, 31)],
    ids=str,
)
def test_a_training_step_on_odd_and_tiny_patches_gives_every_parameter_a_finite_gradient(size):
    network = PVTUNet(1, 3, {2: nn.Conv2d, 3: nn.Conv3d}[len(size)])
    sizes = output_sizes(size, STRIDES[len(size)])
    scales = [[n / edge for n, edge in zip(s, size, strict=True)] for s in sizes]
    labels = torch.randint(0, 3, (2, *size), dtype=torch.int16)
    targets = DownsampleSegForDSTransform(scales)(segmentation=labels)["segmentation"]
    loss = DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {})
    outputs = network(torch.randn(2, 1, *size))
    sum(loss(o, target[:, None]) for o, target in zip(outputs, targets, strict=True)).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, value in gradients.items() if value is None or not value.isfinite().all()] == []


@pytest.mark.parametrize(("dims", "conv_op"), [(2, nn.Conv2d), (3, nn.Conv3d)])
def test_every_parameter_gets_a_gradient(dims, conv_op):
    network = PVTUNet(1, 3, conv_op, drop_path_rate=0.0)  # no branch is dropped
    sum(o.square().mean() for o in network(torch.randn(1, 1, *(32,) * dims))).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_weights_load_with_and_without_deep_supervision():
    on, off = PVTUNet(1, 2).eval(), PVTUNet(1, 2, deep_supervision=False).eval()
    assert off.load_state_dict(on.state_dict()) == ([], [])
    x = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(off(x), on(x)[0])


def test_the_encoder_holds_one_dimension_and_the_size_is_the_known_one():
    network = PVTUNet(1, 14)
    assert not [name for name in network.state_dict() if "2D" in name]
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(32.57e6, rel=1e-3)


@pytest.mark.parametrize("conv_op", ["torch.nn.modules.conv.Conv3d", "torch.nn.modules.conv.Conv2d"])
def test_plans_can_name_the_network(conv_op):
    dims = int(conv_op[-2])
    strides = [[1] * dims, *([*step] for step in STRIDES[dims])]
    network = get_network_from_plans(
        "nnunetv2_cads.network_architecture.PVTUNet",
        {"conv_op": conv_op, "strides": strides, "drop_path_rate": 0.2},
        ["conv_op"],
        input_channels=3,
        output_channels=4,
        deep_supervision=False,
    )
    assert network.decoder.deep_supervision is False
    assert network(torch.randn(1, 3, *(32,) * dims)).shape == (1, 4, *(32,) * dims)
    # what the stock trainer derives from such plans is what the network returns
    scales = list(1 / np.cumprod(np.vstack(strides), axis=0))[:-1]
    sizes = output_sizes((64,) * dims, STRIDES[dims])
    assert [tuple(np.round(scale * 64).astype(int)) for scale in scales] == sizes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_op": nn.Linear}, "conv_op must be nn.Conv2d or nn.Conv3d"),
        ({"strides": [[1, 1, 1], [2, 2, 2]]}, "PVT-UNet has the strides .* in 3D, got"),
    ],
)
def test_arguments_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PVTUNet(1, 2, **changes)
