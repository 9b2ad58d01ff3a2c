"""Planned patches, over all shapes and spacings that images have."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunetv2_cads.experiment_planning.memory_estimate import COTR, PVT_UNET, largest_batch_size, training_bytes
from nnunetv2_cads.experiment_planning.patch_size import plan_patch_size, total_strides
from nnunetv2_cads.experiment_planning.planner import GB
from nnunetv2_cads.network_architecture import CoTr, PVTUNet
from nnunetv2_cads.network_architecture.decoder import output_sizes
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES, plans_architecture

dimensions = st.shared(st.sampled_from((2, 3)), key="dimensions")
spacings = dimensions.flatmap(lambda n: st.tuples(*[st.floats(0.2, 12)] * n))
shapes = dimensions.flatmap(lambda n: st.tuples(*[st.integers(2, 700)] * n))


def plan(spacing, shape, gigabytes=8.0, channels=1, classes=5):
    target = int(gigabytes * GB)
    return plan_patch_size(spacing, shape, lambda patch: largest_batch_size(target, patch, channels, classes) >= 2)


@settings(max_examples=300)
@example((0.5, 10.0, 0.25), (2, 32, 2), 1.0, 1, 2)  # nnU-Net's aspect ratio gives 28 of 32 voxels
@given(spacings, shapes, st.floats(0.5, 48), st.integers(1, 4), st.integers(2, 120))
def test_patches_suit_the_network_the_data_and_the_memory(spacing, shape, gigabytes, channels, classes):
    patch = plan(spacing, shape, gigabytes, channels, classes)
    dims = len(patch)
    for n, step, extent in zip(patch, total_strides(dims), shape, strict=True):
        assert n % step == 0 or (n < step and extent < step)
        assert n <= step * math.ceil(extent / step)
    fits = training_bytes(patch, 2, channels, classes) <= gigabytes * GB
    assert fits or all(n <= step for n, step in zip(patch, total_strides(dims), strict=True))


@settings(max_examples=300)
@given(spacings, shapes, st.floats(0.5, 48))
def test_labels_of_the_stock_trainer_have_the_sizes_of_the_outputs(spacing, shape, gigabytes):
    patch = plan(spacing, shape, gigabytes)
    total, stock = (1,) * len(patch), []
    for stride in plans_architecture(len(patch))["arch_kwargs"]["strides"][
        :-1
    ]:  # as nnUNetTrainer and its transform do
        total = tuple(a * b for a, b in zip(total, stride, strict=True))
        stock.append(tuple(round(n * (1 / s)) for n, s in zip(patch, total, strict=True)))
    assert output_sizes(patch, STRIDES[len(patch)]) == stock


@settings(max_examples=12)
@given(spacings, shapes, st.integers(1, 3), st.integers(2, 5))
def test_nnunet_builds_the_planned_network(spacing, shape, channels, classes):
    patch = plan(spacing, shape, gigabytes=0.1)  # the smallest patch that is divisible
    plans = plans_architecture(len(patch))
    names = (plans["network_class_name"], plans["arch_kwargs"], plans["_kw_requires_import"])
    network = get_network_from_plans(*names, channels, classes, deep_supervision=True).eval()
    assert isinstance(network, PVTUNet)
    with torch.no_grad():
        outputs = network(torch.zeros(1, channels, *patch))
    assert [tuple(output.shape[2:]) for output in outputs] == output_sizes(patch, STRIDES[len(patch)])


@pytest.mark.parametrize("slices", [100, 200, 350, 500])
def test_an_abdomen_at_8_gb(slices):
    assert plan((2.5, 0.8, 0.8), (slices, 512, 512), classes=14) == (48, 192, 192)


@pytest.mark.parametrize(
    ("spacing", "shape", "expected"),
    [
        ((1.0, 1.0, 1.0), (40, 50, 36), (48, 64, 32)),  # whole images, to the nearest multiple
        ((10.0, 1.5, 1.5), (9, 256, 256), (12, 256, 256)),  # few thick slices: as few as labels allow
        ((1.0, 1.0), (20, 30), (24, 32)),
    ],
)
def test_small_and_anisotropic_images(spacing, shape, expected):
    assert plan(spacing, shape) == expected


def test_more_memory_never_gives_a_smaller_patch():
    volumes = [math.prod(plan((2.5, 0.8, 0.8), (300, 512, 512), gb)) for gb in (1, 2, 4, 8, 16, 24, 40)]
    assert volumes == sorted(volumes)
    assert volumes[0] < volumes[-1]


@pytest.mark.parametrize(
    ("network", "conv_op", "cost"),
    [(PVTUNet, nn.Conv2d, PVT_UNET[2]), (PVTUNet, nn.Conv3d, PVT_UNET[3]), (CoTr, nn.Conv3d, COTR[3])],
)
def test_the_estimate_knows_the_number_of_parameters(network, conv_op, cost):
    assert sum(p.numel() for p in network(1, 14, conv_op).parameters()) == pytest.approx(cost.parameters, rel=0.01)


@pytest.mark.parametrize("half_precision", [False, True])
def test_the_estimate_grows_with_everything(half_precision):
    least = training_bytes((32, 64, 64), 2, 1, 3, half_precision)
    for larger in (((48, 64, 64), 2, 1, 3), ((32, 64, 64), 3, 1, 3), ((32, 64, 64), 2, 2, 3), ((32, 64, 64), 2, 1, 90)):
        assert training_bytes(*larger, half_precision) > least
