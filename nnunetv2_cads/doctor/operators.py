"""Our own operators for the CPU beside PyTorch's in float64, and the faults of PyTorch that they go around."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_cads.network_architecture.ops.convolution import convolve
from nnunetv2_cads.network_architecture.ops.dimensions import to_map, to_tokens
from nnunetv2_cads.network_architecture.ops.instance_norm import EPS, instance_norm_leaky_relu
from nnunetv2_cads.network_architecture.ops.linear import FEWEST_TOKENS, TokenLinear
from nnunetv2_cads.network_architecture.ops.pointwise import class_scores
from nnunetv2_cads.network_architecture.pvt_v2 import MLP
from pretraining.plain.model import MLP as PlainMLP

FLOAT32, BF16 = 1e-4, 0.02
"""How far a result may be off, relative to its length; measured: up to 5e-7 and 8e-3."""

TENSORS = ("image", "weights", "bias", "kernel", "kernel's bias", "last weights", "last bias")
"""What an operator takes, in this order; all but the MLP take the first few."""

Operator = Callable[..., Tensor]


class Case(NamedTuple):
    """An operator and what it must equal.

    Attributes:
        name: of the operator.
        ours: takes an image and weights.
        stock: the same by PyTorch.
        shapes: of the image and the weights.
        bf16: whether under autocast.
    """

    name: str
    ours: Operator
    stock: Operator
    shapes: tuple[tuple[int, ...], ...]
    bf16: bool = False


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.func.functional_call(TokenLinear(*weight.shape[::-1]), {"weight": weight, "bias": bias}, x)


def _class_scores(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    layer = nn.Conv3d(weight.shape[1], len(weight), 1)
    del layer.weight, layer.bias
    layer.weight, layer.bias = weight, bias
    return class_scores(layer, x)


def _convolution(x: Tensor, weight: Tensor) -> Tensor:
    return convolve(lambda image: F.conv3d(image, weight, padding=1), x)


def _stock_convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(x, weight, padding=1)


def _mlp(x: Tensor, *weights: Tensor, kind: type[nn.Module] = MLP) -> Tensor:
    mlp = kind(weights[0].shape[1], len(weights[0]))
    by_name = dict(zip(mlp.state_dict(), weights, strict=True))
    return to_map(torch.func.functional_call(mlp, by_name, (to_tokens(x), x.shape[2:])), x.shape[2:])


_stock_mlp = partial(_mlp, kind=PlainMLP)


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return instance_norm_leaky_relu(x.clone(), weight, bias)


def _stock_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.leaky_relu(F.instance_norm(x, weight=weight, bias=bias, eps=EPS), 0.01)


MLP_WEIGHTS = ((64, 16), (64,), (64, 1, 3, 3, 3), (64,), (16, 64), (16,))
THIN = ((2, 64, 2, 6, 6), (64, 64, 3, 3, 3))
THIN_CONVOLUTION = Case("convolution of two slices", _convolution, _stock_convolution, THIN, bf16=True)
CASES = (
    Case("MLP with depthwise convolution", _mlp, _stock_mlp, ((2, 16, 5, 8, 8), *MLP_WEIGHTS)),
    Case("MLP of two slices", _mlp, _stock_mlp, ((2, 16, 2, 6, 6), *MLP_WEIGHTS), bf16=True),
    THIN_CONVOLUTION,
    Case("linear layer", _linear, F.linear, ((2, FEWEST_TOKENS, 48), (96, 48), (96,))),
    Case("instance norm", _norm, _stock_norm, ((2, 32, 6, 9, 9), (32,), (32,))),
    Case("class scores", _class_scores, F.conv3d, ((2, 32, 6, 8, 8), (5, 32, 1, 1, 1), (5,))),
)


def differences(case: Case) -> dict[str, float]:
    """How far output and gradients are off, relative to their length."""
    return _compare(case.ours, case)


def faults() -> Iterator[tuple[str, float]]:
    """The faults of PyTorch that we know and go around, and how far its results are off here; 0 where it has none."""
    of_thin = _compare(THIN_CONVOLUTION.stock, THIN_CONVOLUTION)
    yield "bf16 weight gradient of maps of two slices (oneDNN)", _beyond(max(of_thin.values()), BF16)
    torch.manual_seed(0)
    x = torch.randn(1, 16, 4, 6, 6)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = x.to(dtype, copy=True).requires_grad_()
        gradient = torch.linspace(-1, 1, x.numel(), dtype=dtype).view_as(x)
        F.instance_norm(leaf).backward(gradient.contiguous(memory_format=torch.channels_last_3d))
        gradients.append(leaf.grad.double())
    yield "instance norm's gradient in channels-last layout", _beyond(_relative(*gradients), FLOAT32)


def _beyond(difference: float, limit: float) -> float:
    return difference if difference > limit else 0.0


def _compare(operator: Operator, case: Case) -> dict[str, float]:
    torch.manual_seed(0)
    tensors = [torch.randn(shape) for shape in case.shapes]
    found = _run(operator, tensors, torch.autocast("cpu", torch.bfloat16) if case.bf16 else nullcontext())
    rounded = [tensor.bfloat16() if case.bf16 else tensor for tensor in tensors]
    expected = _run(case.stock, [tensor.double() for tensor in rounded], nullcontext())
    names = ("output", *(f"gradient of the {name}" for name in TENSORS))
    return {name: _relative(a, b) for name, a, b in zip(names, found, expected, strict=False)}


def _run(operator: Operator, tensors: list[Tensor], context: object) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    with context:
        y = operator(*leaves)
    gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(gradient.bfloat16().to(y.dtype))
    return [y.detach().double(), *(leaf.grad.double() for leaf in leaves)]


def _relative(found: Tensor, expected: Tensor) -> float:
    difference = float((found - expected).norm() / expected.norm())
    return difference if difference == difference else float("inf")
