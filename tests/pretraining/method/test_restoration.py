"""The loss of restoration, and steps with it: whole batches and parts, beside the distillation and alone."""

import dataclasses

import pytest
import torch

import pretraining.method.pretrainer
from pretraining.config import PretrainConfig, RestorationConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.method.restoration import restoration_loss, target
from pretraining.run.estimate import random_sample
from pretraining.views.corrupted_crops import Crop

CPU = torch.device("cpu")
BOTH = {
    "batch_size": 4, "head_out_dim": 32, "head_hidden_dim": 32, "head_bottleneck_dim": 16, "epochs": 2,
    "warmup_epochs": 0, "crop_size": (16, 64, 64), "restoration_weight": 0.5, "restored_crop_size": (16, 32, 32),
}  # fmt: skip
ALONE = BOTH | {"distillation_weight": 0.0}
WITH_PLACES = BOTH | {"token_weight": 0.5, "ray_weight": 2.0}


def blobs(count: int) -> Crop:
    """Crops of two tissues that differ by 60 HU, a third of the voxels blank."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.randn(count, 1, 4, 8, 8, generator=generator), (16, 32, 32))
    truth = torch.where(smooth > 0, 60.0, 0.0)
    judged = torch.zeros_like(truth, dtype=torch.bool)
    judged[:, :, ::3] = True
    return Crop(torch.where(judged, 0.0, truth / 1024), truth, judged)


def test_the_target_is_the_window_and_nothing_beyond_it():
    config = RestorationConfig(restoration_window=(-200.0, 400.0))
    hu = torch.tensor([-1024.0, -200.0, 100.0, 200.0, 400.0, 1000.0])
    assert target(hu, config).tolist() == pytest.approx([-3, -3, 0, 1, 3, 3])


@pytest.mark.parametrize(("error", "expected"), [("smooth_l1", 1.5), ("l1", 2.0), ("l2", 4.0)])
def test_the_loss_is_the_error_of_the_judged_voxels_in_units_of_the_window(error, expected):
    config = RestorationConfig(restoration_error=error)
    crop = blobs(2)
    right = target(crop.truth, config)
    wrong_elsewhere = torch.where(crop.judged, right, 9.0)
    assert restoration_loss(wrong_elsewhere, crop.truth, crop.judged, config) == 0
    assert restoration_loss(wrong_elsewhere + 2, crop.truth, crop.judged, config).item() == pytest.approx(expected)


@pytest.mark.parametrize("settings", [BOTH, ALONE, WITH_PLACES], ids=["both", "alone", "with_places"])
def test_a_batch_in_parts_is_the_whole_batch(settings):
    results = []
    for parts in (1, 2):
        config = PretrainConfig().replace(**settings, accumulate=parts, seed=3)
        pretrainer = Pretrainer(config, 2, CPU)
        torch.manual_seed(5)
        sample = random_sample(config, 4)
        results.append((pretrainer.train_step(*sample), pretrainer))
    (whole, one), (parts, two) = results
    torch.testing.assert_close(parts.loss, whole.loss)
    torch.testing.assert_close(parts.losses, whole.losses)
    torch.testing.assert_close(two.place_center, one.place_center)
    torch.testing.assert_close(parts.gradient_norms, whole.gradient_norms, rtol=1e-3, atol=1e-6)
    weights = dict(two.student.named_parameters())
    for name, weight in one.student.named_parameters():
        assert (weights[name] - weight).abs().max() < 1e-4, name


def test_the_loss_is_the_weighted_sum_and_the_distillation_is_what_it_is_without_restoration():
    torch.manual_seed(0)
    config = PretrainConfig().replace(**BOTH)
    sample = random_sample(config, 4)
    both = Pretrainer(config, 2, CPU).train_step(*sample)
    without = Pretrainer(config.replace(restoration_weight=0.0), 2, CPU).train_step(*sample[:3])
    torch.testing.assert_close(both.stage_losses, without.stage_losses)
    torch.testing.assert_close(both.loss, both.stage_losses.mean() + 0.5 * both.losses["restoration"])
    assert without.losses.keys() == {"distillation"}


def gradients(pretrainer: Pretrainer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in pretrainer.student.named_parameters() if p.grad is not None}


def test_the_weights_act_on_the_gradients():
    torch.manual_seed(0)
    config = PretrainConfig().replace(**BOTH, clip_grad=0.0, freeze_last_layer_epochs=0)
    sample = random_sample(config, 4)
    found = []
    for weights in ((1.0, 1e-9), (1e-9, 1.0), (0.25, 3.0)):  # with 0 there would be no such loss
        pretrainer = Pretrainer(config, 2, CPU)  # of both, so that its weights are the same each time
        loss = dataclasses.replace(config.loss, distillation_weight=weights[0])
        restoration = dataclasses.replace(config.restoration, restoration_weight=weights[1])
        pretrainer.config = dataclasses.replace(config, loss=loss, restoration=restoration)
        pretrainer.train_step(*sample)
        found.append(gradients(pretrainer))
    distilled, restored, both = found
    for name in ("backbone.block2.0.mlp.fc1.weight", "backbone.patch_embed1.proj.0.weight", "decoder.voxels.weight"):
        expected = 0.25 * distilled[name] + 3.0 * restored[name]
        torch.testing.assert_close(both[name], expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
        assert restored[name].abs().max() > 0


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_step_of_both_under_autocast_is_near_the_exact_one(amp, monkeypatch):
    monkeypatch.setitem(pretraining.method.pretrainer._AUTOCAST_DTYPE, "fp16", None)  # fp16 takes a CPU a minute
    torch.manual_seed(0)
    config = PretrainConfig().replace(**BOTH)
    sample = random_sample(config, 4)
    exact, rounded = (Pretrainer(c, 2, CPU).train_step(*sample) for c in (config, config.replace(amp=amp)))
    for name, loss in exact.losses.items():
        assert rounded.losses[name].item() == pytest.approx(loss.item(), rel=0.05), name
    assert rounded.loss.item() == pytest.approx(exact.loss.item(), rel=0.05) and rounded.finite


def test_alone_there_are_no_heads_and_all_that_is_trained_has_a_gradient():
    config = PretrainConfig().replace(**ALONE)
    pretrainer = Pretrainer(config, 2, CPU)
    assert not [name for name in pretrainer.student.state_dict() if "head" in name or "_2D" in name]
    result = pretrainer.train_step(*random_sample(config, 4))
    assert result.health is None and result.stage_losses.numel() == 0
    trained = [p for p in pretrainer.student.parameters() if p.requires_grad]
    assert len(result.gradient_norms) == len(trained) and all(p.grad is not None for p in trained)


def test_a_step_that_is_not_finite_changes_nothing():
    config = PretrainConfig().replace(**ALONE)
    pretrainer = Pretrainer(config, 2, CPU)
    before = {name: value.clone() for name, value in pretrainer.student.state_dict().items()}
    sample = random_sample(config, 4)
    sample.crop.truth[0, 0, 0, 0, 0] = float("nan")
    assert not pretrainer.train_step(*sample).finite
    assert all(torch.equal(value, before[name]) for name, value in pretrainer.student.state_dict().items())


def test_it_learns_to_tell_two_tissues_apart():
    """They differ by 60 HU; whoever has learnt nothing of them can at best answer with the same value everywhere."""
    config = PretrainConfig().replace(**ALONE | {"lr": 1e-3 * 256 / 4, "epochs": 30, "drop_path_rate": 0.0})
    pretrainer, crop = Pretrainer(config, 2, CPU), blobs(2)
    values = torch.linspace(-1, 1, 101).view(-1, 1, 1, 1, 1, 1)
    same_everywhere = min(
        restoration_loss(value.expand_as(crop.truth), *crop[1:3], config.restoration).item() for value in values
    )
    losses = [pretrainer.train_step(None, None, None, crop).loss.item() for _ in range(30)]
    assert losses[-1] < 0.8 * same_everywhere < losses[0]
    restored = pretrainer.restore(crop.seen)
    assert restored.shape == crop.truth.shape and pretrainer.student.training
