"""Four training steps of plain CADS and of the fast method, from the same weights and views: everything agrees.

So a clone checks the method without recorded numbers. The settings make every schedule move within four steps of two
epochs: the learning rate warms up and falls, weight decay, teacher momentum and temperature change, the last layers are
frozen in the first epoch only, and some gradients are clipped and others not.

Both sides compute in float32, in another order of sums, so they differ by rounding. AdamW divides a gradient by its own
size and would make whole steps of the rounding of gradients that are 0 (of biases before a normalisation); with
``adam_eps`` 1e-3, far above rounding (1e-8), it does not.
"""

import numpy as np
import pytest
import torch

from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.plain.step import PlainTrainer
from pretraining.views.streams import Stream

STEPS, STEPS_PER_EPOCH, BATCH = 4, 2, 3
LOSS = 1e-5
"""Relative; measured: up to 9e-7."""
RMS, WORST = 2e-6, 5e-5
"""Of a tensor, absolute; measured: up to 7e-7 and 1.1e-5. A step moves weights by up to its learning rate of 1e-3.

A single weight can differ more than most, where rounding takes an activation over the corner of a LeakyReLU.
"""
SETTINGS = {
    "batch_size": BATCH, "epochs": STEPS // STEPS_PER_EPOCH, "lr": 1e-3 * 256 / BATCH, "min_lr": 1e-4,
    "warmup_epochs": 1, "freeze_last_layer_epochs": 1, "warmup_teacher_temp_epochs": 2, "teacher_momentum": (0.5, 1.0),
    "clip_grad": 0.1, "adam_eps": 1e-3, "head_out_dim": 64, "head_hidden_dim": 64, "head_bottleneck_dim": 32,
}  # fmt: skip
PUBLISHED_HEADS = {"drop_path_rate": 0.0}
OURS = {"drop_path_rate": 0.3, "head_batch_norm": True}


def views_of_steps() -> list[list[torch.Tensor]]:
    """For each step, a batch of views of noise, as small as the encoder takes them."""
    generator, shapes = torch.Generator().manual_seed(0), [(BATCH, 1, 16, 32, 32)] * 2 + [(BATCH, 1, 32, 32)]
    return [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(STEPS)]


@pytest.mark.parametrize("settings", [PUBLISHED_HEADS, OURS], ids=["published heads", "batch norm, stochastic depth"])
def test_losses_weights_and_center_agree_after_every_step(settings, monkeypatch):
    config = PretrainConfig().replace(**SETTINGS | settings)
    fast, plain = Pretrainer(config, STEPS_PER_EPOCH, torch.device("cpu")), PlainTrainer(config, STEPS_PER_EPOCH)
    plain.student.load_state_dict(fast.student.state_dict())
    plain.teacher.load_state_dict(fast.teacher.state_dict())
    before = {name: value.clone() for name, value in plain.student.state_dict().items()}
    clipped = []
    for step, views in enumerate(views_of_steps()):
        noise = fast._noise(5, Stream.DEPTH_OF_VIEWS)  # the teacher's two views, the student's three
        draws = iter([noise[:, view, branch] for view in range(5) for branch in range(2, noise.shape[2])])
        result = fast.train_step(*views)
        with monkeypatch.context() as same_noise:
            same_noise.setattr(torch, "rand", lambda count, device, draws=draws: next(draws))
            losses = plain.train_step(*views)
        np.testing.assert_allclose(result.stage_losses.numpy(), losses, rtol=LOSS, err_msg=f"step {step}: stage losses")
        assert result.loss.item() == pytest.approx(np.mean(losses), rel=LOSS)
        assert_same(f"step {step}, student", fast.student.state_dict(), plain.student.state_dict())
        assert_same(f"step {step}, teacher", fast.teacher.state_dict(), plain.teacher.state_dict())
        assert_same(f"step {step}", {"center": fast.center}, {"center": plain.center})
        clipped.append((result.gradient_norms > config.optim.clip_grad).float().mean().item())
    assert all(0.1 < part < 0.9 for part in clipped), clipped
    after = plain.student.state_dict()
    moved = {name: (after[name] - value).abs().max().item() for name, value in before.items()}
    movement = {name: value for name, value in moved.items() if name.endswith("weight")}
    assert min(movement.values()) > 10 * RMS, min(movement.items(), key=lambda item: item[1])
    fast.student.load_state_dict(plain.student.state_dict())  # weights can be copied both ways
    fast.teacher.load_state_dict(plain.teacher.state_dict())


def assert_same(what: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        difference = ours[name].double() - value.double()
        rms, worst = difference.square().mean().sqrt().item(), difference.abs().max().item()
        assert rms < RMS and worst < WORST, f"{what}: {name} differs by {rms:.1e} (RMS), {worst:.1e} (worst)"
