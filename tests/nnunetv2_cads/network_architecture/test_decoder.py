import copy

import pytest
import torch
from torch import nn

from nnunetv2_cads.network_architecture.decoder import PyramidDecoder, ResidualBlock, output_sizes

CHANNELS, STRIDES = (4, 6, 8), ((2, 2, 2), (1, 2, 2), (2, 2, 2))


def maps_of(size: tuple[int, int, int]) -> list[torch.Tensor]:
    """Random encoder maps of a (D, H, W) input whose edges the strides divide."""
    d, h, w = size
    sizes = [(d // 2, h // 2, w // 2), (d // 2, h // 4, w // 4), (d // 4, h // 8, w // 8)]
    return [torch.randn(2, channels, *s) for channels, s in zip(CHANNELS, sizes, strict=True)]


def test_output_sizes_are_the_input_over_the_strides_so_far_rounded_up():
    assert output_sizes((9, 20, 30), STRIDES) == [(9, 20, 30), (5, 10, 15), (5, 5, 8)]


def test_every_output_has_its_size_and_all_classes():
    decoder = PyramidDecoder(CHANNELS, STRIDES, 3, nn.Conv3d, deep_supervision=True)
    outputs = decoder(maps_of((8, 16, 24)), (8, 16, 24))
    assert [tuple(o.shape) for o in outputs] == [(2, 3, *size) for size in output_sizes((8, 16, 24), STRIDES)]


def test_deep_supervision_changes_what_is_returned_and_not_the_full_resolution():
    decoder = PyramidDecoder(CHANNELS, STRIDES, 3, nn.Conv3d, deep_supervision=True).eval()
    maps = maps_of((8, 16, 16))
    outputs = decoder(maps, (8, 16, 16))
    decoder.deep_supervision = False
    torch.testing.assert_close(decoder(maps, (8, 16, 16)), outputs[0])


def test_every_encoder_map_reaches_the_output():
    decoder = PyramidDecoder(CHANNELS, STRIDES, 3, nn.Conv3d, deep_supervision=False)
    maps = [m.requires_grad_() for m in maps_of((8, 16, 16))]
    decoder(maps, (8, 16, 16)).square().sum().backward()
    assert all(m.grad.abs().sum() > 0 for m in maps)


def test_upsampling_undoes_the_strides():
    decoder = PyramidDecoder(CHANNELS, STRIDES, 3, nn.Conv3d, deep_supervision=True)
    assert [step.stride for step in decoder.upsamplings] == [(2, 2, 2), (1, 2, 2), (2, 2, 2)]


@pytest.mark.parametrize("size", [(8, 16, 24), (7, 13, 22)])
def test_the_fast_path_equals_the_stock_operators_with_all_gradients(size):
    """In float64 every operator is PyTorch's. Seeded: in one of 15 draws a number is so close to 0 that float32, ours
    or PyTorch's, has the other sign there, and the activation's gradient jumps."""
    torch.manual_seed(1)
    decoder = PyramidDecoder(CHANNELS, STRIDES, 3, nn.Conv3d, deep_supervision=True)
    double = copy.deepcopy(decoder).double()
    maps = maps_of(tuple(-(-n // 8) * 8 for n in size))
    sizes = output_sizes(size, (*STRIDES, (1, 1, 1)))[1:]
    maps = [m[:, :, :d, :h, :w] for m, (d, h, w) in zip(maps, sizes, strict=True)]
    gradients = [torch.randn(2, 3, *s).double() for s in output_sizes(size, STRIDES)]
    results = []
    for network, dtype in ((decoder, torch.float32), (double, torch.float64)):
        inputs = [m.detach().to(dtype).requires_grad_() for m in maps]
        outputs = network(inputs, size)
        leaves = [*inputs, *network.parameters()]
        results.append(
            [*outputs, *torch.autograd.grad(outputs, leaves, [g.to(dtype) for g in gradients])],
        )
    for ours, expected in zip(*results, strict=True):
        error = (ours - expected).norm() / expected.norm()
        assert error < 1e-4, (tuple(ours.shape), error)


def test_the_last_step_keeps_only_its_input_and_the_convolutions_outputs():
    block, head = ResidualBlock(4, nn.Conv3d), nn.Conv3d(4, 3, 1)
    x = torch.randn(1, 4, 6, 7, 8, requires_grad=True)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        block(x, head)
    assert sum(t.numel() == x.numel() for t in kept.values()) == 3


def test_compiles_into_one_graph_and_runs_in_bf16():
    decoder = PyramidDecoder(CHANNELS, STRIDES, 3, nn.Conv3d, deep_supervision=True)
    maps = maps_of((8, 16, 16))
    expected = decoder(maps, (8, 16, 16))
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=True)(maps, (8, 16, 16))
    torch.testing.assert_close(compiled, expected, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        rough = decoder(maps, (8, 16, 16))
    sum(o.float().square().mean() for o in (*compiled, *rough)).backward()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters())
    assert all((a - b.float()).abs().mean() < 0.1 * a.abs().mean() for a, b in zip(expected, rough, strict=True))


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_a_block_of_few_slices_learns_the_same_in_bf16(slices):
    torch.manual_seed(0)
    block = ResidualBlock(16, nn.Conv3d)
    x = torch.randn(2, 16, slices, 8, 8)
    kernels = [p for p in block.parameters() if p.dim() > 1]
    gradients = []
    for amp in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = block(x).float()[:, ::2].square().mean()
        gradients.append(torch.autograd.grad(loss, kernels))
    for exact, rough in zip(*gradients, strict=True):
        assert (exact - rough).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CHANNELS, STRIDES, 3, nn.Conv1d, True), "conv_op must be nn.Conv2d or nn.Conv3d, got .*Conv1d"),
        ((CHANNELS, STRIDES[:2], 3, nn.Conv3d, True), "3 maps and 2 strides"),
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PyramidDecoder(*arguments)
