"""CoTr against recorded numbers of the published network, and its contract."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from nnunetv2_cads.network_architecture import CoTr, deformable_transformer
from nnunetv2_cads.network_architecture.cotr import STRIDES, padded_size
from nnunetv2_cads.network_architecture.decoder import output_sizes
from nnunetv2_cads.network_architecture.deformable_transformer import SAMPLING_ORDERS, position_encoding
from nnunetv2_cads.network_architecture.padding import repeat_last_voxels

OUTPUTS = ("full", "ds0", "ds1", "ds2")


@pytest.fixture(scope="module")
def recorded(peers_dir):
    """Arrays of the published network by name."""
    return np.load(peers_dir / "cotr_reference.npz")


@pytest.fixture(scope="module")
def reference_network(set_reference_weights):
    """Makes the network of the recorded numbers: three classes, no dropout. All share their weights."""
    network = CoTr(1, 3)
    set_reference_weights(network)
    state = network.state_dict()

    def make(order: str, dtype: torch.dtype = torch.float32) -> CoTr:
        with torch.device("meta"):
            made = CoTr(1, 3, sampling_order=order)
        made.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)
        return made.eval()

    return make


def error(ours: torch.Tensor, theirs: np.ndarray) -> float:
    """The largest difference, as a part of the largest number."""
    return np.abs(ours.detach().numpy() - theirs).max() / np.abs(theirs).max()


def test_reference_keys_and_shapes(peers_dir):
    expected = json.loads((peers_dir / "cotr_keys.json").read_text())
    assert {key: list(value.shape) for key, value in CoTr(1, 3).state_dict().items()} == expected


@pytest.mark.parametrize("order", SAMPLING_ORDERS)
def test_reference_maps_outputs_and_gradients(order, peers_dir, recorded, reference_network):
    """In float64: the recorded float32 numbers differ from exact ones by 6e-6 alone."""
    network, seen = reference_network(order, torch.float64), {}
    network.backbone.register_forward_hook(lambda module, inputs, maps: seen.update(maps=maps))
    network.encoder_Detrans.register_forward_hook(lambda module, inputs, maps: seen.update(attended=maps))
    outputs = network(torch.from_numpy(recorded["square.input"]).double())
    errors = {n: error(y, recorded[f"square.{order}.{n}"]) for n, y in zip(OUTPUTS, outputs, strict=True)}
    tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in seen["attended"]], dim=1)
    errors["tokens"] = error(tokens, recorded[f"square.{order}.tokens"])
    for i, step in enumerate((16, 16, 1, 1)):  # of the first two maps, every 16th channel was recorded
        errors[f"map{i}"] = error(seen["maps"][i][:, ::step], recorded[f"square.map{i}"])
    assert max(errors.values()) <= 1e-5, errors

    loss = sum(y.square().mean() for y in outputs)
    loss.backward()
    expected = json.loads((peers_dir / "cotr_gradients.json").read_text())[order]
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-6)
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert gradients.keys() == expected["gradients"].keys()
    far = {}
    for name, (total, squares) in expected["gradients"].items():
        ours = gradients[name]
        # sampling has kinks at the cells' borders, on which float32 and float64 may fall to different sides
        close_sum = abs(ours.sum() - total) <= 1e-3 * math.sqrt(squares * ours.numel())
        if not close_sum or abs(ours.square().sum() - squares) > 1e-3 * squares:
            far[name] = (ours.sum().item(), ours.square().sum().item(), total, squares)
    assert far == {}


@pytest.mark.parametrize("order", SAMPLING_ORDERS)
def test_reference_outputs_in_float32_of_two_oblong_volumes(order, recorded, reference_network):
    with torch.no_grad():
        outputs = reference_network(order)(torch.from_numpy(recorded["oblong.input"]))
    errors = {n: error(y, recorded[f"oblong.{order}.{n}"]) for n, y in zip(OUTPUTS, outputs, strict=True)}
    assert max(errors.values()) <= 5e-5, errors


@pytest.mark.parametrize("case", ["square", "oblong"])
@pytest.mark.parametrize("level", [2, 3])
def test_reference_position_encodings(case, level, recorded):
    theirs = recorded[f"{case}.position{level}"][0]
    ours = position_encoding(theirs.shape[1:], torch.device("cpu")).T.reshape(theirs.shape)
    assert error(ours, theirs) <= 1e-5


@functools.cache
def meta_network(channels: int) -> CoTr:
    """Of three classes; computes shapes alone."""
    with torch.device("meta"):
        return CoTr(channels, 3)


EDGE = st.integers(1, 130)


@settings(max_examples=25)
@given(size=st.tuples(EDGE, EDGE, EDGE), channels=st.integers(1, 3), batch=st.integers(1, 2))
@example(size=(8, 16, 16), channels=1, batch=1)
@example(size=(1, 1, 1), channels=1, batch=1)
def test_every_patch_size_works_and_matches_the_labels_of_nnunet(size, channels, batch):
    sizes = output_sizes(size, STRIDES[3])
    scales = [[n / edge for n, edge in zip(s, size, strict=True)] for s in sizes]
    labels = DownsampleSegForDSTransform(scales)(segmentation=torch.zeros(1, *size, dtype=torch.int16))["segmentation"]
    outputs = meta_network(channels)(torch.empty(batch, channels, *size, device="meta"))
    assert tuple(outputs[0].shape) == (batch, 3, *size)
    assert [o.shape[2:] for o in outputs] == [label.shape[1:] for label in labels]


@settings(max_examples=50)
@given(size=st.tuples(EDGE, EDGE, EDGE))
def test_padding_is_the_least_that_the_strides_and_the_norms_allow(size):
    padded = padded_size(size)
    coarsest = [n // s for n, s in zip(padded, (8, 16, 16), strict=True)]
    assert [c * s for c, s in zip(coarsest, (8, 16, 16), strict=True)] == list(padded)
    least = tuple(s * math.ceil(n / s) for n, s in zip(size, (8, 16, 16), strict=True))
    assert padded == ((16, 16, 16) if least == (8, 16, 16) else least)


def test_a_padded_patch_gives_the_leading_part_of_what_the_whole_gives():
    network = CoTr(2, 3).eval()
    x = torch.randn(1, 2, 9, 30, 17)
    with torch.no_grad():
        ours, whole = network(x), network(repeat_last_voxels(x, (16, 32, 32)))
    for part, full in zip(ours, whole, strict=True):
        assert torch.equal(part, full[tuple(slice(n) for n in part.shape)])
    assert [tuple(o.shape[2:]) for o in ours] == [(9, 30, 17), (9, 15, 9), (5, 8, 5), (3, 4, 3)]


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("shape", [(1, 2, 3, 9, 2), (2, 1, 17, 30, 16)], ids=str)
def test_a_training_step_gives_every_parameter_a_gradient(shape, amp):
    network = CoTr(shape[1], 3)
    for layer in network.encoder_Detrans.encoder["layers"]:  # at first, with zeros, queries have no effect
        nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.02)
        nn.init.normal_(layer.self_attn.attention_weights.weight, std=0.02)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        outputs = network(torch.randn(shape))
    sum(output.float().square().mean() for output in outputs).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    without = [name for name, g in gradients.items() if g is None or not g.isfinite().all() or not g.any()]
    assert without == []


def test_weights_load_with_and_without_deep_supervision():
    on, off = CoTr(1, 2).eval(), CoTr(1, 2, deep_supervision=False).eval()
    assert off.load_state_dict(on.state_dict()) == ([], [])
    x = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(off(x), on(x)[0])
        on.decoder.deep_supervision = False  # as nnU-Net's trainer switches it
        assert on(x).shape == (1, 2, 16, 16, 16)


def test_both_orders_have_the_same_weights_and_other_outputs(reference_network):
    x = torch.linspace(-1, 1, 16**3).view(1, 1, 16, 16, 16)
    with torch.no_grad():
        corrected, published = (reference_network(order)(x)[0] for order in SAMPLING_ORDERS)
    assert (corrected - published).abs().max() > 0.1


def test_a_compiled_network_is_one_graph_with_the_same_gradients(monkeypatch):
    monkeypatch.setattr(deformable_transformer, "LAYERS", 1)  # a second layer is traced like the first
    torch.compiler.reset()
    network = CoTr(1, 2).eval()  # without dropout
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 1, 15, 30, 16)
    results = []
    for function in (network, compiled):
        outputs = function(x)
        results.append(torch.autograd.grad(sum(o.square().mean() for o in outputs), list(network.parameters())))
        results.append(outputs)
    gradients, outputs, compiled_gradients, compiled_outputs = results
    torch.testing.assert_close(compiled_outputs, outputs, rtol=1e-3, atol=1e-3)
    far = [
        name
        for (name, _), a, b in zip(network.named_parameters(), gradients, compiled_gradients, strict=True)
        if (a - b).norm() > 0.01 * a.norm() + 1e-4
    ]
    assert far == []


def test_parameters_and_first_weights_are_those_of_the_published_network():
    network = CoTr(1, 14)
    assert sum(p.numel() for p in network.parameters()) == 41_872_504
    kernels = {
        "backbone.conv1": 0.00954,
        "transposeconv_stage2": 0.0255,
        "stage2_de.resconv1.conv": 0.0139,
        "ds1_cls_conv": math.sqrt(2 / 14),
    }
    for name, std in kernels.items():
        assert network.get_submodule(name).weight.std().item() == pytest.approx(std, rel=0.05)
    in_encoder = sum(p.numel() for p in network.encoder.parameters())
    assert in_encoder == 20_500_800 + 9_316_992


@pytest.mark.parametrize("conv_op", [nn.Conv2d, nn.Linear])
def test_other_dimensions_are_refused(conv_op):
    with pytest.raises(ValueError, match=r"CoTr segments volumes alone: conv_op must be nn\.Conv3d, got"):
        CoTr(1, 2, conv_op)
