"""Contrast of points: features at a place, the loss against one written out, parts, levels, and that it learns."""

import math

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining.config import PretrainConfig
from pretraining.method.points import VOXELS_OF_CELL, contrast, features_at
from pretraining.method.pretrainer import Pretrainer
from pretraining.run.estimate import flops_per_step, random_sample
from pretraining.views.point_pairs import PointPair

CPU = torch.device("cpu")
ALONE = {
    "encoder_size": "b0", "batch_size": 4, "epochs": 2, "warmup_epochs": 0, "distillation_weight": 0.0,
    "point_weight": 1.0, "point_crop_size": (16, 32, 32), "point_count": 32,
}  # fmt: skip
WITH_CADS = ALONE | {
    "distillation_weight": 0.5, "head_out_dim": 32, "head_hidden_dim": 32, "head_bottleneck_dim": 16,
    "crop_size": (16, 64, 64),
}  # fmt: skip


def test_the_strides_are_those_of_the_encoders_maps():
    maps = PVTv2Encoder(1, (3,), 0.0, "b0")(torch.zeros(1, 1, 32, 64, 64))
    for feature_map, strides in zip(maps, VOXELS_OF_CELL, strict=True):
        assert tuple(feature_map.shape[2:]) == tuple(
            size // stride for size, stride in zip((32, 64, 64), strides, strict=True)
        )


@pytest.mark.parametrize("level", range(4))
def test_a_feature_is_that_of_the_voxels_that_the_decoder_makes_of_a_cell(level):
    """A map of the means of its cells, of a crop that is a linear function, has that function's value everywhere."""
    slopes = torch.tensor([3.0, -1.0, 0.5])
    voxels = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (32, 64, 80)), indexing="ij"), -1).float()
    crop = voxels @ slopes
    strides = VOXELS_OF_CELL[level]
    feature_map = F.avg_pool3d(crop[None, None], strides, strides).repeat(2, 1, 1, 1, 1)
    low = (torch.tensor(strides) - 1) / 2  # the middle of the first cell; beyond it there is nothing to interpolate
    points = low + torch.rand(2, 50, 3) * (torch.tensor(crop.shape) - 1 - 2 * low)
    found = features_at(feature_map, points, level)
    assert found.shape == (2, 50, 1)
    torch.testing.assert_close(found[..., 0], points @ slopes, rtol=1e-4, atol=1e-3)


def test_the_loss_is_the_mean_cross_entropy_of_the_right_point_among_those_of_its_own_pair():
    generator = torch.Generator().manual_seed(0)
    first, second = (F.normalize(torch.randn(3, 5, 8, generator=generator), dim=-1) for _ in range(2))
    expected, found = 0.0, 0
    for pair in range(3):
        for a, b in ((first[pair], second[pair]), (second[pair], first[pair])):
            for i in range(5):
                scores = [math.exp(float(a[i] @ b[j]) / 0.2) for j in range(5)]
                expected -= math.log(scores[i] / sum(scores)) / 30
        found += sum(int((first[pair][i] @ second[pair].T).argmax() == i) for i in range(5))
    losses, fractions = contrast([torch.cat([first, second])] * 2, 0.2)
    torch.testing.assert_close(losses, torch.full((2,), expected))
    torch.testing.assert_close(fractions, torch.full((2,), found / 15))


def test_the_weights_of_the_levels_are_those_of_their_losses():
    config = PretrainConfig().replace(**ALONE, point_level_weights=(1.0, 0.0, 3.0, 0.0, 0.0))
    pretrainer = Pretrainer(config, 2, CPU)
    pretrainer.student.eval()
    pair = random_sample(config, 4).pair
    crops, points = torch.cat([pair.crop_1, pair.crop_2]), torch.cat([pair.points_1, pair.points_2])
    losses, _ = contrast(pretrainer.student.features(crops, points), config.point.point_temp)
    result = pretrainer.train_step(None, None, None, None, pair)
    torch.testing.assert_close(result.loss, (losses[0] + 3 * losses[1]) / 4, rtol=1e-4, atol=1e-4)
    assert result.points_found.keys() == {"stem", "stage2"}


@pytest.mark.parametrize("settings", [ALONE, WITH_CADS], ids=["alone", "with_cads"])
def test_a_batch_in_parts_is_the_whole_batch(settings):
    results = []
    for parts in (1, 2):
        config = PretrainConfig().replace(**settings, accumulate=parts, seed=3)
        pretrainer = Pretrainer(config, 2, CPU)
        torch.manual_seed(5)
        results.append(pretrainer.train_step(*random_sample(config, 4)))
    whole, parts = results
    torch.testing.assert_close(parts.losses, whole.losses)
    torch.testing.assert_close(parts.points_found, whole.points_found)
    torch.testing.assert_close(parts.gradient_norms, whole.gradient_norms, rtol=1e-3, atol=1e-6)
    expected = whole.losses["points"] + 0.5 * whole.losses.get("distillation", 0)
    torch.testing.assert_close(whole.loss, expected)


@pytest.mark.parametrize(("weights", "deepest"), [((1, 1, 1, 1, 0), 3), ((1, 0, 0, 0, 0), 0), ((0, 0, 0, 0, 1), 4)])
def test_alone_all_is_trained_that_the_last_level_is_made_of_and_nothing_else(weights, deepest):
    """Ranks would wait for the gradients of what nothing teaches."""
    pretrainer = Pretrainer(PretrainConfig().replace(**ALONE, point_level_weights=weights), 2, CPU)
    pretrainer.train_step(*random_sample(pretrainer.config, 4))
    parameters = dict(pretrainer.student.named_parameters())
    fixed = {name for name, p in parameters.items() if not p.requires_grad}
    assert all((p.grad is not None) == (name not in fixed) for name, p in parameters.items())
    below = tuple(
        f"backbone.{part}{stage}." for stage in range(deepest + 1, 5) for part in ("patch_embed", "block", "norm")
    )
    of_stem = "backbone.patch_embed1.proj."
    assert fixed == {name for name in parameters if name.startswith(below) and not name.startswith(of_stem)}
    assert parameters["backbone.patch_embed1.proj.0.weight"].grad.abs().max() > 0
    assert not [name for name in parameters if name.startswith("head") or "_2D" in name]


def test_a_step_under_autocast_is_near_the_exact_one():
    torch.manual_seed(0)
    config = PretrainConfig().replace(**WITH_CADS)
    sample = random_sample(config, 4)
    exact, rounded = (Pretrainer(c, 2, CPU).train_step(*sample) for c in (config, config.replace(amp="bf16")))
    assert rounded.losses["points"].item() == pytest.approx(exact.losses["points"].item(), rel=0.05)
    assert rounded.finite


def test_a_step_that_is_not_finite_changes_nothing():
    pretrainer = Pretrainer(PretrainConfig().replace(**ALONE), 2, CPU)
    before = {name: value.clone() for name, value in pretrainer.student.state_dict().items()}
    sample = random_sample(pretrainer.config, 4)
    sample.pair.crop_2[0, 0, 0, 0, 0] = float("nan")
    assert not pretrainer.train_step(*sample).finite
    assert all(torch.equal(value, before[name]) for name, value in pretrainer.student.state_dict().items())


def test_pairs_cost_what_the_encoder_costs_on_both_crops():
    none, more = (
        flops_per_step(Pretrainer(PretrainConfig().replace(**WITH_CADS | {"point_weight": weight}), 2, CPU))
        for weight in (0.0, 1.0)
    )
    alone = flops_per_step(Pretrainer(PretrainConfig().replace(**ALONE), 2, CPU))
    assert more == none + alone
    to_the_stem = ALONE | {"point_level_weights": (1.0, 0.0, 0.0, 0.0, 0.0)}
    assert flops_per_step(Pretrainer(PretrainConfig().replace(**to_the_stem), 2, CPU)) < 0.9 * alone


def test_it_learns_to_find_points_and_shows_where():
    """Noise, and the same noise shifted: an encoder that has learnt nothing finds few points, since all look alike."""
    config = PretrainConfig().replace(**ALONE | {"lr": 2e-3 * 256 / 4, "epochs": 40, "drop_path_rate": 0.0})
    generator = torch.Generator().manual_seed(0)
    scan = F.interpolate(torch.randn(4, 1, 10, 18, 18, generator=generator), (20, 36, 36), mode="trilinear")
    points = torch.rand(4, 32, 3, generator=generator) * (torch.tensor([12, 28, 28]) - 1)
    pair = PointPair(scan[:, :, :16, :32, :32], scan[:, :, 4:, 4:, 4:] * 0.7, points + 4, points)
    pretrainer = Pretrainer(config, 2, CPU)
    results = [pretrainer.train_step(None, None, None, None, pair) for _ in range(40)]
    assert results[-1].loss < 0.5 * results[0].loss
    assert results[-1].points_found["stem"] > 0.8 > results[0].points_found["stage3"]
    one = pair._replace(points_1=pair.points_1[:, :1].round(), points_2=pair.points_1[:, :1].round() - 4)
    cosines = pretrainer.similarity(one)
    assert cosines.shape == (4, 4, 32, 32) and cosines.abs().max() <= 1 + 1e-4 and pretrainer.student.training
    for row, (_, y, x) in enumerate(one.points_2[:, 0].int().tolist()):
        found = divmod(cosines[0, row].argmax().item(), 32)
        assert abs(found[0] - y) <= 2 and abs(found[1] - x) <= 2
