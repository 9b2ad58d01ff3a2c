"""CoTr through nnU-Net's commands, with stock plans; experiment_planning/test_commands.py has it with ours."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_cads.network_architecture import CoTr
from nnunetv2_cads.network_architecture.cotr import STRIDES
from nnunetv2_cads.network_architecture.decoder import output_sizes
from nnunetv2_cads.training import variants
from nnunetv2_cads.training.base_trainer import TrainingCannotStart
from nnunetv2_cads.training.cotr_trainer import nnUNetTrainerCoTr, nnUNetTrainerCoTr_AdamW

TRAINER = "TwoStepTrainerCoTr"
CPU = ("-device", "cpu")


@pytest.fixture(scope="module")
def model(nnunet_project):
    """Result folder of a training that was stopped after an epoch and resumed to its end, validation included."""
    here = {"nnUNet_extTrainer": str(nnunet_project.trainer_folder)}
    arguments = ("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", TRAINER, *CPU)
    with pytest.raises(SystemExit, match="stopped by the test"):
        nnunet_project.call(*arguments, STOP_BEFORE_EPOCH="1", **here)
    nnunet_project.call(*arguments, "--c", **here)
    return nnunet_project.results / f"{TRAINER}__nnUNetPlans__3d_fullres"


def test_a_resumed_training_has_the_rates_of_an_unbroken_one(model):
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["logging"]["lrs"] == pytest.approx([1e-2, 1e-2 * 0.5**0.9])
    assert np.isfinite(checkpoint["logging"]["train_losses"]).all()
    assert checkpoint["network_weights"].keys() == CoTr(1, 3).state_dict().keys()


def test_prediction_gives_what_validation_gave(model, nnunet_project, tmp_path):
    (validated,) = (model / "fold_0" / "validation").glob("*.nii.gz")
    (tmp_path / "in").mkdir()
    case = validated.name.removesuffix(".nii.gz")
    shutil.copy(nnunet_project.root / "raw" / "Dataset001_Blobs" / "imagesTr" / f"{case}_0000.nii.gz", tmp_path / "in")
    of = ("-d", 1, "-c", "3d_fullres", "-f", 0, "-tr", TRAINER, *CPU, "-npp", 0, "-nps", 0)
    here = {"nnUNet_extTrainer": str(nnunet_project.trainer_folder)}
    nnunet_project.call("nnUNetv2_predict", "-i", tmp_path / "in", "-o", tmp_path / "out", *of, **here)
    ours, theirs = (sitk.ReadImage(str(file)) for file in (tmp_path / "out" / validated.name, validated))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))


def test_2d_is_refused_in_a_sentence(make_trainer):
    with pytest.raises(TrainingCannotStart, match="nnUNetTrainerCoTr: CoTr segments volumes alone: conv_op must be"):
        make_trainer(nnUNetTrainerCoTr, configuration="2d").initialize()


def test_labels_have_the_sizes_of_the_outputs_and_the_loss_the_published_weights(make_trainer, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)
    trainer = make_trainer(nnUNetTrainerCoTr, channels=3)
    trainer.initialize()
    patch = trainer.configuration_manager.patch_size
    sizes = [
        tuple(round(n * s) for n, s in zip(patch, scale, strict=True))
        for scale in trainer._get_deep_supervision_scales()
    ]
    assert sizes == output_sizes(patch, STRIDES[3])
    assert trainer.loss.weight_factors == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])
    assert trainer.network.backbone.conv1.weight.shape[1] == 3
    trainer.set_deep_supervision_enabled(False)
    assert trainer.network.deep_supervision is False
    trainer.enable_deep_supervision = False
    assert trainer._get_deep_supervision_scales() is None
    assert not hasattr(trainer._build_loss(), "weight_factors")


def test_optimizers_are_nnunets_and_ours(make_trainer):
    trainer = make_trainer(nnUNetTrainerCoTr)
    trainer.initialize()
    (group,) = trainer.optimizer.param_groups
    assert type(trainer.optimizer) is torch.optim.SGD
    assert [group[name] for name in ("lr", "momentum", "nesterov", "weight_decay")] == [1e-2, 0.99, True, 3e-5]
    trainer = make_trainer(nnUNetTrainerCoTr_AdamW)
    trainer.initialize()
    assert type(trainer.optimizer) is torch.optim.AdamW
    trainer.lr_scheduler.step(50)  # after the warm-up
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [5e-4, 5e-4, 1e-4, 1e-4]


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("nnUNetTrainerCoTr", "corrected"),
        ("nnUNetTrainerCoTr_AdamW_5epochs", "corrected"),
        ("nnUNetTrainerCoTr_published", "published"),
        ("nnUNetTrainerCoTr_published_250epochs", "published"),
    ],
)
def test_a_variant_has_its_sampling_order_without_an_instance_too(name, order, make_trainer):
    trainer = make_trainer(variants.TRAINERS[name])
    for owner in (trainer, type(trainer)):  # nnU-Net trains with the one and predicts with the other
        with torch.device("meta"):
            network = owner.build_network_architecture(
                trainer.plans_manager, trainer.configuration_manager, 1, 3, enable_deep_supervision=False
            )
        assert {layer.self_attn.sampling_order for layer in network.encoder_Detrans.encoder["layers"]} == {order}
        assert network.deep_supervision is False
    assert trainer.sampling_order == order
    assert trainer.num_epochs == {"5epochs": 5, "250epochs": 250}.get(name.split("_")[-1], 1000)


@pytest.mark.parametrize(
    ("base", "settings", "message"),
    [
        (nnUNetTrainerCoTr, {"encoder_lr": 1e-3}, "settings has 'encoder_lr'"),
        (nnUNetTrainerCoTr, {"sampling_order": "zyx"}, "sampling_order must be one of corrected, published, got 'zyx'"),
    ],
)
def test_a_setting_without_effect_is_refused(base, settings, message, make_trainer):
    with pytest.raises(TrainingCannotStart, match=message):
        make_trainer(type("Mine", (base,), {"settings": settings})).initialize()
