"""The loss against the method written out pair by pair."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretraining.method.loss import deep_distillation_loss, update_center


def pairwise_loss(student, teacher, center, teacher_temp, student_temp, xray_weight=1.0):
    """The method to the letter: every pair of unlike views of every stage on its own."""
    teacher_views = F.softmax((teacher - center) / teacher_temp, -1).chunk(2)
    losses = []
    for logits in student:
        pairs = [
            -(t * F.log_softmax(s / student_temp, -1)).sum(-1).mean()
            for i, t in enumerate(teacher_views)
            for j, s in enumerate(logits.chunk(3))
            if i != j
        ]
        assert len(pairs) == 4
        weights = [1.0, xray_weight, 1.0, xray_weight]  # CT1-CT2, CT1-X, CT2-CT1, CT2-X
        losses.append(sum(w * p for w, p in zip(weights, pairs, strict=True)) / sum(weights))
    return losses


@settings(max_examples=30)
@given(batch=st.integers(1, 5), width=st.integers(2, 40), teacher_temp=st.floats(0.02, 0.1), seed=st.integers(0, 1000))
def test_equals_the_loss_written_pair_by_pair(batch, width, teacher_temp, seed):
    generator = torch.Generator().manual_seed(seed)
    student = [torch.randn(3 * batch, width, generator=generator).double() for _ in range(4)]
    for logits in student:
        logits.requires_grad_()
    teacher = torch.randn(2 * batch, width, generator=generator).double()
    center = torch.randn(width, generator=generator).double()
    expected = pairwise_loss(student, teacher, center, teacher_temp, 0.1)
    terms = deep_distillation_loss(student, teacher, center, teacher_temp, 0.1)
    torch.testing.assert_close(terms.stage_losses.double(), torch.stack(expected).detach(), rtol=1e-4, atol=1e-4)
    ours = torch.autograd.grad(terms.total, student)
    theirs = torch.autograd.grad(sum(expected) / 4, student)
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("xray_weight", [0.0, 0.5, 3.0])
def test_weights_of_pairs_and_stages_equal_the_weighted_mean_of_the_pairs(xray_weight):
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(9, 20, generator=generator).double().requires_grad_() for _ in range(4)]
    teacher, center = torch.randn(6, 20, generator=generator).double(), torch.randn(20, generator=generator).double()
    expected = pairwise_loss(student, teacher, center, 0.05, 0.1, xray_weight)
    terms = deep_distillation_loss(student, teacher, center, 0.05, 0.1, xray_weight, (0.0, 1.0, 0.0, 3.0))
    torch.testing.assert_close(terms.stage_losses.double(), torch.stack(expected).detach(), rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(terms.total, student, retain_graph=True)
    plain = torch.autograd.grad((expected[1] + 3 * expected[3]) / 4, student, allow_unused=True)
    for mine, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if other is None else other, rtol=1e-3, atol=1e-5)
    if xray_weight == 0:
        assert all((gradient[6:] == 0).all() for gradient in gradients)


def test_uniform_outputs_give_the_chance_level():
    terms = deep_distillation_loss([torch.zeros(6, 50)] * 4, torch.zeros(4, 50), torch.zeros(50), 0.04, 0.1)
    assert terms.total.item() == pytest.approx(math.log(50), rel=1e-6)


def test_teacher_gets_no_gradient_and_the_center_is_not_changed():
    teacher, center = torch.randn(4, 8, requires_grad=True), torch.randn(8)
    before = center.clone()
    student = torch.randn(6, 8, requires_grad=True)
    deep_distillation_loss([student] * 4, teacher, center, 0.04, 0.1).total.backward()
    assert teacher.grad is None and student.grad is not None
    assert torch.equal(center, before)


def test_center_moves_towards_the_mean_of_the_batch():
    center = update_center(torch.full((3,), 2.0), torch.tensor([2.0, 3.0, 4.0]), 0.9)
    torch.testing.assert_close(center, torch.tensor([2.0, 2.1, 2.2]))
