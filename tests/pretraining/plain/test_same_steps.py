"""Four training steps of plain CADS and of the fast method, from the same weights and views: everything agrees.

So a clone checks the method without recorded numbers. The settings make every schedule move within four steps of two
epochs: the learning rate warms up and falls, weight decay, teacher momentum and temperature change, the last layers are
frozen in the first epoch only, and some gradients are clipped and others not.

Both sides compute in float32, in another order of sums, so they differ by rounding. AdamW divides a gradient by its own
size and would make whole steps of the rounding of gradients that are 0 (of biases before a normalisation); with
``adam_eps`` 1e-4, far above rounding (1e-8) and below most gradients, it does not.
"""

import numpy as np
import pytest
import torch

from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.plain import model as plain_model
from pretraining.plain.loader import Views
from pretraining.plain.step import PlainTrainer

STEPS, STEPS_PER_EPOCH, BATCH = 4, 2, 3
LOSS = 1e-5  # relative; measured: up to 2e-6
WEIGHT = 1e-5  # absolute; measured: up to 2e-6, while a step moves a weight by about its learning rate of 1e-3
SETTINGS = {
    "batch_size": BATCH, "epochs": STEPS // STEPS_PER_EPOCH, "lr": 1e-3 * 256 / BATCH, "min_lr": 1e-4,
    "warmup_epochs": 1, "freeze_last_layer_epochs": 1, "warmup_teacher_temp_epochs": 2, "teacher_momentum": (0.9, 1.0),
    "clip_grad": 0.1, "adam_eps": 1e-4, "head_out_dim": 64, "head_hidden_dim": 64, "head_bottleneck_dim": 32,
}  # fmt: skip
PUBLISHED_HEADS = {"crop_size": (16, 64, 64), "drop_path_rate": 0.0}
OURS = {"crop_size": (16, 32, 32), "uniform_sampling": False, "head_batch_norm": True, "drop_path_rate": 0.3}


def views_of_steps(config: PretrainConfig) -> list[list[torch.Tensor]]:
    """For each step, a batch of views of noise and blobs."""
    np.random.seed(0)  # noqa: NPY002  (batchgenerators draws from the global generator)
    rng, make_views = np.random.default_rng(0), Views(config.view)
    batches = []
    for _ in range(STEPS):
        volumes = rng.integers(-1024, 1024, (BATCH, 24, 8, 8)).repeat(14, 2).repeat(14, 3) + rng.normal(0, 30, (112, 112))
        samples = [make_views(volume, rng.uniform(-1, 1, (24, 112))) for volume in volumes]
        batches.append([torch.from_numpy(np.stack(arrays)) for arrays in zip(*samples, strict=True)])
    return batches


@pytest.mark.parametrize("settings", [PUBLISHED_HEADS, OURS], ids=["published heads", "batch norm, stochastic depth"])
def test_losses_weights_and_center_agree_after_every_step(settings, monkeypatch):
    config = PretrainConfig().replace(**SETTINGS | settings)
    fast, plain = Pretrainer(config, STEPS_PER_EPOCH, torch.device("cpu")), PlainTrainer(config, STEPS_PER_EPOCH)
    plain.student.load_state_dict(fast.student.state_dict())
    plain.teacher.load_state_dict(fast.teacher.state_dict())
    before = {name: value.clone() for name, value in plain.student.state_dict().items()}
    clipped = []
    for step, views in enumerate(views_of_steps(config)):
        noise = fast._noise(BATCH)  # of each sample, for the teacher's two views and the student's three
        draws = iter([noise[:, view, branch] for view in range(5) for branch in range(2, noise.shape[2])])
        monkeypatch.setattr(plain_model, "uniform", lambda count, device, draws=draws: next(draws))
        result, losses = fast.train_step(*views), plain.train_step(*views)
        np.testing.assert_allclose(result.levels.numpy(), losses, rtol=LOSS, err_msg=f"step {step}: stage losses")
        assert result.loss.item() == pytest.approx(np.mean(losses), rel=LOSS)
        assert_same(f"step {step}, student", fast.student.state_dict(), plain.student.state_dict())
        assert_same(f"step {step}, teacher", fast.teacher.state_dict(), plain.teacher.state_dict())
        assert_same(f"step {step}", {"center": fast.center}, {"center": plain.center})
        clipped.append((result.gradient_norms > config.optim.clip_grad).float().mean().item())
    assert all(0.1 < part < 0.9 for part in clipped), clipped
    after = plain.student.state_dict()
    moved = {name: (after[name] - value).abs().max().item() for name, value in before.items()}
    assert min(value for name, value in moved.items() if name.endswith("weight")) > 10 * WEIGHT
    fast.student.load_state_dict(plain.student.state_dict())  # weights can be copied both ways
    fast.teacher.load_state_dict(plain.teacher.state_dict())


def assert_same(what: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=0, atol=WEIGHT, msg=lambda text, name=name: f"{what}: {name}: {text}"
        )
