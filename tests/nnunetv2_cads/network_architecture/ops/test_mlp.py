"""The MLP of few samples at a time against the same layers by PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.ops import mlp as ops
from nnunetv2_cads.network_architecture.pvt_v2 import MLP
from pretraining.plain.model import MLP as PlainMLP

SIZES = [(3, 4, 5), (8, 3, 3), (2, 3, 1), (1, 4, 5), (4, 5), (1, 1), (1, 1, 1)]


def run(mlp: nn.Module, size: tuple[int, ...], x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Output, and gradients of tokens and weights."""
    leaf = x.clone().requires_grad_()
    mlp.zero_grad()
    y = mlp(leaf, size)
    y.backward(gradient.to(y.dtype))
    return [y.detach(), leaf.grad, *(parameter.grad for parameter in mlp.parameters())]


def compare(mlp: MLP, size: tuple[int, ...], x: Tensor, gradient: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Ours, two samples at a time, and plain CADS's, which are PyTorch's layers."""
    plain = PlainMLP(mlp.fc1.in_features, mlp.fc1.out_features).to(x.dtype)
    plain.load_state_dict(mlp.state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "_samples_at_once", lambda x, weights: 2)
        ours = run(mlp, size, x, gradient)
    return ours, run(plain, size, x, gradient)


@settings(max_examples=40, deadline=None)
@given(size=st.sampled_from(SIZES), batch=st.integers(1, 5), dim=st.integers(1, 4), strided=st.booleans())
def test_equals_the_layers_one_after_another(size, batch, dim, strided):
    torch.manual_seed(0)
    mlp = MLP(dim, 3 * dim).double()
    x = torch.randn(batch, torch.Size(size).numel(), 2 * dim).double()
    x = x[..., ::2] if strided else x[..., :dim].contiguous()
    gradient = torch.randn_like(x)
    for mine, theirs in zip(*compare(mlp, size, x, gradient), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("size", [(2, 12, 12), (4, 8, 8), (16, 16)])
def test_is_near_to_float64(size, amp):
    torch.manual_seed(0)
    mlp, x = MLP(16, 64), torch.randn(5, torch.Size(size).numel(), 16)
    gradient = torch.randn_like(x)
    _, exact = compare(mlp.double(), size, x.double(), gradient.double())
    mlp.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        mine, _ = compare(mlp, size, x, gradient)
    assert mine[0].dtype == (torch.bfloat16 if amp else torch.float32)
    for found, expected in zip(mine, exact, strict=True):
        assert (found - expected).norm() < (1e-2 if amp else 1e-6) * expected.norm()


@pytest.mark.parametrize("amp", [False, True])
def test_what_is_kept_for_the_backward_pass(amp):
    mlp, x = MLP(8, 64), torch.randn(3, 4 * 6 * 6, 8, requires_grad=True)
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    )
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=amp):
        mlp(x, (4, 6, 6))
    of_samples = sum(tensor.numel() * tensor.itemsize for tensor in kept if tensor.shape[:1] == (3,))
    assert of_samples == 3 * 4 * 6 * 6 * ((8 + 64) * 2 if amp else 8 * 4)


def test_changes_with_the_size_of_samples_by_rounding_alone(monkeypatch):
    mlp, x = MLP(8, 32), torch.randn(6, 4 * 6 * 6, 8)
    gradient = torch.randn_like(x)
    results = []
    for size in (1, 10**9):
        monkeypatch.setattr(ops, "HIDDEN_BYTES_AT_ONCE", size)
        results.append(run(mlp, (4, 6, 6), x, gradient))
    for of_one, of_all in zip(*results, strict=True):
        torch.testing.assert_close(of_one, of_all, rtol=1e-4, atol=1e-5)
