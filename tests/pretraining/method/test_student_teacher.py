"""Student, teacher and their heads: cosine logits against autograd's own way, precision, compilation."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pretraining.config import ModelConfig, PretrainConfig
from pretraining.method import heads
from pretraining.method.heads import ProjectionHead, WeightNormLinear
from pretraining.method.pretrainer import Pretrainer
from pretraining.presets import PRESETS
from pretraining.run.estimate import random_sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # with and without convolutions
def test_cosine_logits_equal_the_normalised_product(monkeypatch, dtype):
    monkeypatch.setattr(heads, "ROWS_AT_ONCE", 128)  # two full parts and the rest
    torch.manual_seed(0)
    layer = WeightNormLinear(16, 300).to(dtype)
    layer.weight_g.data.uniform_(0.5, 2)
    x = torch.randn(6, 16, dtype=dtype, requires_grad=True)
    target = torch.randn(6, 300, dtype=dtype)
    gradients = []
    for forward in (layer, lambda x: F.linear(x, layer.weight_g * F.normalize(layer.weight_v, dim=1))):
        logits = forward(x)
        gradients.append([logits, *torch.autograd.grad((logits * target).sum(), (x, layer.weight_v))])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_of_cosine_logits_by_differences():
    layer = WeightNormLinear(4, 5).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, rows: torch.func.functional_call(layer, {"weight_v": rows}, x), (x, layer.weight_v)
    )


def test_a_row_of_zeros_gives_zero_and_no_nan():
    layer = WeightNormLinear(4, 3)
    layer.weight_v.data[1] = 0
    logits = layer(torch.randn(2, 4))
    logits.sum().backward()
    assert (logits[:, 1] == 0).all() and layer.weight_v.grad.isfinite().all()


def test_bf16_logits_are_near_the_exact_ones():
    torch.manual_seed(0)
    head = ProjectionHead(8, ModelConfig(head_hidden_dim=32, head_bottleneck_dim=16, head_out_dim=64))
    x = torch.randn(12, 8)
    exact = head(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head(x)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.03)
    rounded.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in head.parameters() if p.requires_grad)


def test_a_compiled_run_takes_the_same_steps_in_one_graph_for_student_and_teacher_each(monkeypatch):
    small = {"batch_size": 2, "head_out_dim": 32, "head_hidden_dim": 32, "head_bottleneck_dim": 16, "warmup_epochs": 0}
    small |= {"restoration_weight": 1.0, "restored_crop_size": (16, 32, 32), "token_weight": 1.0, "ray_weight": 1.0}
    small |= {"point_weight": 1.0, "point_crop_size": (16, 32, 32), "point_count": 16}
    config = PretrainConfig().replace(**{**PRESETS["cads"], **small})
    torch.manual_seed(0)
    steps = [random_sample(config, 2) for _ in range(2)]
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    results = []
    for compiled in (False, True):
        pretrainer = Pretrainer(config.replace(compile=compiled), 4, torch.device("cpu"))
        results.append([pretrainer.train_step(*views) for views in steps])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours.stage_losses, plain.stage_losses, rtol=1e-3, atol=0)
        torch.testing.assert_close(ours.losses, plain.losses, rtol=1e-3, atol=0)
        torch.testing.assert_close(ours.gradient_norms, plain.gradient_norms, rtol=1e-2, atol=1e-4)
    assert not torch.equal(results[1][0].stage_losses, results[1][1].stage_losses)
    assert hasattr(pretrainer._student, "_orig_mod")
