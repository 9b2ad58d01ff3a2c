"""Places of crops: that a CT, its rays and its X-ray call the same place by the same number; their losses."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from pretraining.config import PretrainConfig
from pretraining.method.loss import place_loss
from pretraining.method.places import along_rays, cells, in_order_of_slices
from pretraining.method.pretrainer import Pretrainer
from pretraining.method.student_teacher import Shown
from pretraining.preprocess import main as preprocess
from pretraining.run.estimate import flops_per_step, random_sample
from pretraining.store.store import Store
from pretraining.views.corrupted_crops import crop_xray_size, make_crop
from pretraining.views.subvolumes import SubVolumes

CPU = torch.device("cpu")
PLACES = {
    "batch_size": 4, "head_out_dim": 32, "head_hidden_dim": 32, "head_bottleneck_dim": 16, "epochs": 2,
    "warmup_epochs": 0, "crop_size": (16, 64, 64), "restoration_weight": 1.0, "restored_crop_size": (32, 64, 96),
    "window_slices": 32, "token_weight": 1.0, "ray_weight": 1.0, "freeze_last_layer_epochs": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory):
    """A store of two bodies with bone near their feet, on their right; the second has fewer slices than a crop."""
    folder = tmp_path_factory.mktemp("archive")
    for name, slices in (("long", 60), ("short", 28)):
        hu = np.full((slices, 80, 120), -1000, np.int16)
        hu[:, 20:60, 20:100] = 40
        hu[3:12, 30:50, 25:50] = 1000
        sitk.WriteImage(sitk.GetImageFromArray(hu), str(folder / f"{name}.nii.gz"))
    assert preprocess([str(folder), str(folder / "store"), "-np", "1"]) == 0
    return Store.open(folder / "store")


@pytest.mark.parametrize("volume_id", ["long", "short"], ids=["within the scan", "beyond its edges"])
def test_an_xray_says_of_a_place_what_the_rays_through_the_body_do(lopsided, volume_id):
    config = PretrainConfig().replace(**PLACES)
    subvolume = next(s for s in SubVolumes(lopsided, config.view) if s.volume_id == volume_id)
    crop = make_crop(lopsided, subvolume, config, np.random.default_rng(3))
    assert crop.xray.shape == (1, *crop_xray_size(config)) == (1, 32, 96)
    xray = in_order_of_slices(crop.xray[None])
    rays = along_rays(crop.truth[None])  # the crop has most of the body's rows
    grid = (8, 24)
    of_xray, of_rays = cells(xray, grid).flatten(), cells(rays, grid).flatten()
    assert np.corrcoef(of_xray, of_rays)[0, 1] > 0.95
    for axis in (2, 3):
        assert np.corrcoef(cells(xray.flip(axis), grid).flatten(), of_rays)[0, 1] < 0.93


def test_cells_are_numbered_alike_in_maps_of_all_sizes():
    numbers = torch.arange(2 * 2 * 3 * 4.0).reshape(2, 1, 2, 3, 4)
    fine = numbers.repeat_interleave(4, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert torch.equal(cells(fine, (2, 3, 4)), cells(numbers, (2, 3, 4)))
    assert cells(numbers, (2, 3, 4)).flatten().tolist() == list(range(48))
    assert torch.equal(along_rays(fine), along_rays(numbers).repeat_interleave(4, 2).repeat_interleave(2, 3))


def test_the_loss_is_the_mean_cross_entropy_of_each_place_with_its_own_target():
    torch.manual_seed(0)
    teacher, center = torch.randn(6, 8), torch.randn(8)
    targets = ((teacher - center) / 0.05).softmax(-1)
    stages = [torch.randn(6, 8) for _ in range(4)]
    expected = [-(targets * (logits / 0.1).log_softmax(-1)).sum(-1).mean() for logits in stages]
    found = place_loss(stages, teacher, center, 0.05, 0.1, (1.0, 0.0, 0.0, 3.0))
    torch.testing.assert_close(found, (expected[0] + 3 * expected[3]) / 4)


def test_student_and_teacher_meet_at_the_same_places():
    """Where both see the same and are the same network, each place's logits are equal, and no other's."""
    config = PretrainConfig().replace(**PLACES, drop_path_rate=0.0)
    pretrainer = Pretrainer(config, 2, CPU)
    sample = random_sample(config, 2)
    crop = sample.crop.truth
    student = pretrainer.student(None, None, Shown(crop)).places
    teacher = pretrainer.teacher(Shown(torch.cat([sample.view_1, sample.view_2])), Shown(crop)).places
    assert student.tokens[-1].shape == (2 * 2 * 2 * 3, 32) and teacher.rays.shape == (2 * 2 * 3, 32)
    torch.testing.assert_close(student.tokens[-1], teacher.tokens)
    assert (student.tokens[-1][1:] - teacher.tokens[:-1]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)], ids=["tokens", "rays", "both"])
def test_a_step_trains_on_what_has_a_weight_and_centers_the_places(weights):
    token_weight, ray_weight = weights
    config = PretrainConfig().replace(**PLACES | {"token_weight": token_weight, "ray_weight": ray_weight})
    pretrainer = Pretrainer(config, 2, CPU)
    sample = random_sample(config, 4)
    assert (sample.crop.xray is None) == (not ray_weight)
    result = pretrainer.train_step(*sample)
    assert ["tokens" in result.losses, "rays" in result.losses] == [weight > 0 for weight in weights]
    torch.testing.assert_close(result.losses["distillation"], result.stage_losses.mean())
    torch.testing.assert_close(result.loss, sum(result.losses.values()))
    assert pretrainer.place_center.abs().max() > 0 and not torch.equal(pretrainer.place_center, pretrainer.center)
    assert all(p.grad is not None for p in pretrainer.student.parameters() if p.requires_grad)


def test_places_cost_a_teachers_pass_and_an_xrays():
    def flops(**weights):
        return flops_per_step(Pretrainer(PretrainConfig().replace(**PLACES | weights), 2, CPU))

    none, tokens = flops(token_weight=0.0, ray_weight=0.0), flops(ray_weight=0.0)
    assert 1.05 < tokens / none < 1.4 and flops() > tokens
