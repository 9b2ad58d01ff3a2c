"""The trainer inside this process; test_commands.py drives it through nnU-Net's commands."""

import functools
import hashlib
import locale
import pickle
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunetv2_cads.encoder_file.read import read_encoder_file
from nnunetv2_cads.encoder_file.record import FIELDS, EncoderRecord
from nnunetv2_cads.encoder_file.write import write_encoder_file
from nnunetv2_cads.network_architecture import PVTv2Encoder
from nnunetv2_cads.network_architecture.decoder import output_sizes
from nnunetv2_cads.network_architecture.pvt_unet import STRIDES
from nnunetv2_cads.training import variants
from nnunetv2_cads.training.base_trainer import TrainingCannotStart
from nnunetv2_cads.training.discovery import nnunetv2_cads_trainers
from nnunetv2_cads.training.trainer import nnUNetTrainerCADS


@pytest.fixture
def skip_nnunets_start(monkeypatch):
    """Ends on_train_start where nnU-Net's own part would begin."""
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)


def log_of(trainer: nnUNetTrainer) -> str:
    return Path(trainer.log_file).read_text()


def test_a_started_training_has_the_encoder_and_can_step(make_trainer, nnunet_project, monkeypatch):
    monkeypatch.setenv("nnUNet_cads_encoder", str(nnunet_project.encoder_file))
    trainer = make_trainer()
    trainer.on_train_start()

    saved = torch.load(nnunet_project.encoder_file, weights_only=True)["teacher"]
    state = trainer.network.encoder.state_dict()
    assert all(torch.equal(value, saved[f"backbone.{key}"]) for key, value in state.items())
    log = log_of(trainer)
    assert str(nnunet_project.encoder_file) in log
    assert hashlib.sha256(nnunet_project.encoder_file.read_bytes()).hexdigest() in log
    assert "180 matched, 0 missing, 24 unexpected" in log
    assert "pre-training saw: spacing_mm [1.0, 1.0, 1.0], clip_hu [-1024, 1024]" in log
    assert "training shows: spacing_mm [3.0, 1.5, 1.5], patch size [20, 40, 40], normalisation ['CTN" in log
    assert re.search(r"WARNING: .*Channel 0 \(CT\): the plans clip to \[\d.* clip to \[-1024, 1024\] HU", log)
    assert "the plans have 3 x 1.5 x 1.5 mm, the encoder saw 1 x 1 x 1 mm" in log

    batch = next(trainer.dataloader_train)
    labels = [tuple(label.shape[2:]) for label in batch["target"]]
    assert labels == output_sizes(trainer.configuration_manager.patch_size, STRIDES[3])
    limits = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, limit: limits.append(limit) or clip(p, limit))
    trainer.lr_scheduler.step(0)
    trainer.train_step(batch)
    assert limits == [12]
    assert all(parameter.grad is not None for parameter in trainer.network.encoder.parameters())
    # a step of these almost uniform weights is below float32 in the queries of earlier stages
    moved = [key for key in state if "block4" in key and "q.weight" in key]
    assert moved and not any(torch.equal(state[key], saved[f"backbone.{key}"]) for key in moved)


def test_an_unset_variable_says_what_to_do_before_anything_starts(make_trainer):
    trainer = make_trainer()
    with pytest.raises(TrainingCannotStart, match=r"nnUNet_cads_encoder is not set.*export.*nnUNetTrainerCADS_scratch"):
        trainer.on_train_start()
    assert trainer.dataloader_train is None
    assert "nnUNet_cads_encoder is not set" in log_of(trainer)
    assert not (Path(trainer.output_folder_base) / "plans.json").exists()


def _save(path: Path, state: dict) -> None:
    write_encoder_file(path, state, EncoderRecord())


def _without_a_block(path: Path) -> None:
    _save(path, {key: value for key, value in PVTv2Encoder().state_dict().items() if "block4" not in key})


def _wider(path: Path) -> None:
    state = PVTv2Encoder().state_dict()
    _save(path, {**state, "norm4.weight": torch.ones(1024)})


def _of_another_size(path: Path) -> None:
    write_encoder_file(path, PVTv2Encoder(size="b0").state_dict(), EncoderRecord(architecture="PVTv2-b0"))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.write_text("no tensors"), "not a checkpoint of plain tensors"),
        (lambda path: torch.save({"network_weights": {}}, path), "no 'teacher' entry"),
        (lambda path: _save(path, {"conv.weight": torch.ones(1)}), "none of its 1 keys belongs to the 180"),
        (
            _of_another_size,
            "holds a PVTv2-b0 encoder, but the network has a PVTv2-b1; give an encoder file of PVTv2-b1",
        ),
        (_wider, r"1 of the network's 180 .* \(first: norm4.weight \(1024,\) instead of \(512,\)\)"),
        (_without_a_block, r"32 of the network's 180 .* \(first: block4.0.norm1.weight\)"),
    ],
    ids=["missing", "text", "nnunet", "other keys", "other size", "other shape", "incomplete"],
)
def test_a_file_that_does_not_fit_is_refused_in_a_sentence(write, message, make_trainer, monkeypatch, tmp_path):
    path = tmp_path / "encoder.pth"
    write(path)
    monkeypatch.setenv("nnUNet_cads_encoder", str(path))
    trainer = make_trainer()
    with pytest.raises(TrainingCannotStart, match=message) as raised:
        trainer.on_train_start()
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.code == str(raised.value)  # what Python prints when the command ends with it
    assert trainer.dataloader_train is None


@pytest.fixture
def trainer_of_records(make_trainer, monkeypatch, tmp_path):
    """Loads an encoder file with a record into a trainer of the project; returns its log, or the refusal.

    The encoder is a tiny one, since records are what differs.
    """
    trainer, path = make_trainer(), tmp_path / "encoder.pth"
    trainer.network, trainer.num_input_channels = nn.Module(), 1
    trainer.network.encoder = nn.Linear(1, 1)
    trainer.network.encoder.input_channels, trainer.network.encoder.size = 1, "b1"
    state = {f"backbone.{key}": value for key, value in trainer.network.encoder.state_dict().items()}
    monkeypatch.setenv("nnUNet_cads_encoder", str(path))

    def load(record) -> str:
        torch.save({"teacher": state, "cads": record}, path)
        Path(trainer.log_file).write_text("")
        try:
            trainer._load_encoder()
        except TrainingCannotStart as error:
            assert str(path) in str(error) and "\n" not in str(error)
            return f"refused: {error}"
        return log_of(trainer)

    return load


VALUE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
VALUES = VALUE | st.lists(VALUE, max_size=4) | st.dictionaries(st.text(max_size=2), VALUE, max_size=2)
NAMES = st.sampled_from(sorted(FIELDS)) | st.text(max_size=3)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=st.dictionaries(NAMES, VALUES, min_size=1, max_size=2))
@example(record={"spacing_mm": 1.0})
@example(record={"spacing_mm": [1.0]})
@example(record={"spacing_mm": [1, 1, None]})
@example(record={"clip_hu": [-1024]})
@example(record={"clip_hu": None})
@example(record={"intensity_scale_hu": "x"})
@example(record={"format_version": 99})
def test_any_record_is_compared_with_the_plans_or_refused_in_a_sentence(record, trainer_of_records):
    said = trainer_of_records(record)
    assert "Its pre-training saw" in said or any(f"says {name} = " in said for name in record)


def test_a_known_record_is_loaded(trainer_of_records):
    record = {"format_version": 1, "architecture": "PVTv2-b1", "axes": "zxy", "spacing_mm": [2, 1.5, 1.5], "new": 7}
    said = trainer_of_records(record)
    assert "the plans have 3 x 1.5 x 1.5 mm, the encoder saw 2 x 1.5 x 1.5 mm" in said
    assert "nnU-Net shows zyx, the encoder saw zxy" in said and "new 7" in said


def test_a_record_with_characters_that_the_locale_lacks_is_logged(trainer_of_records):
    locale.setlocale(locale.LC_ALL, "C")
    if locale.getpreferredencoding(False).lower() == "utf-8":
        pytest.skip("this Python writes UTF-8 in every locale")
    assert "site M\\xfcnchen" in trainer_of_records({"site": "M\u00fcnchen"})


def test_weights_from_a_checkpoint_need_no_encoder(make_trainer, skip_nnunets_start, tmp_path):
    first = make_trainer(variants.TRAINERS["nnUNetTrainerCADS_scratch"])
    first.on_train_start()
    first.save_checkpoint(str(tmp_path / "checkpoint.pth"))

    pretrained = make_trainer()
    pretrained.initialize()
    load_pretrained_weights(pretrained.network, str(tmp_path / "checkpoint.pth"))
    pretrained.on_train_start()
    assert "come from a checkpoint" in log_of(pretrained)

    resumed = make_trainer()
    resumed.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    resumed.on_train_start()
    for key, value in first.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[key], value)


def test_a_trainer_initialised_by_hand_still_gets_the_encoder(
    make_trainer, nnunet_project, skip_nnunets_start, monkeypatch, tmp_path
):
    file = tmp_path / "encoder.safetensors"
    saved = read_encoder_file(nnunet_project.encoder_file).state
    write_encoder_file(file, saved, EncoderRecord())
    monkeypatch.setenv("nnUNet_cads_encoder", str(file))
    trainer = make_trainer()
    trainer.initialize()
    trainer.network = torch.compile(trainer.network)  # as nnU-Net does on a GPU; compiles nothing before a forward
    trainer.on_train_start()
    assert torch.equal(trainer.network._orig_mod.encoder.norm4.bias, saved["norm4.bias"])
    trainer.set_deep_supervision_enabled(False)
    assert trainer.network._orig_mod.decoder.deep_supervision is False


def test_several_channels_respond_to_equal_images_as_the_encoder_did_to_one(
    make_trainer, nnunet_project, skip_nnunets_start, monkeypatch
):
    monkeypatch.setenv("nnUNet_cads_encoder", str(nnunet_project.encoder_file))
    one, three = make_trainer(), make_trainer(channels=3)
    for trainer in (one, three):
        trainer.on_train_start()
    x = torch.randn(1, 1, 16, 32, 32)
    first_of_one, first_of_three = (trainer.network.encoder.patch_embed1.proj[0] for trainer in (one, three))
    torch.testing.assert_close(first_of_three(x.expand(-1, 3, -1, -1, -1)), first_of_one(x), rtol=1e-3, atol=1e-4)
    assert "Spread over 3 of 3 input channels: patch_embed1.proj.0.weight" in log_of(three)


def test_2d_refuses_an_encoder_without_x_rays_and_says_where_to_get_one(
    make_trainer, nnunet_project, skip_nnunets_start, monkeypatch, tmp_path
):
    content = torch.load(nnunet_project.encoder_file, weights_only=True)
    content["teacher"] = {key: value for key, value in content["teacher"].items() if "_2D" not in key}
    content.pop("cads", None)
    torch.save(content, tmp_path / "ct_alone.pth")
    monkeypatch.setenv("nnUNet_cads_encoder", str(tmp_path / "ct_alone.pth"))
    make_trainer().on_train_start()
    with pytest.raises(TrainingCannotStart, match="weights for CT alone; for 2d, pre-train with --preset cads or"):
        make_trainer(configuration="2d").on_train_start()


def test_2d_takes_the_x_ray_half(make_trainer, nnunet_project, skip_nnunets_start, monkeypatch):
    monkeypatch.setenv("nnUNet_cads_encoder", str(nnunet_project.encoder_file))
    trainer = make_trainer(configuration="2d")
    trainer.on_train_start()
    saved = torch.load(nnunet_project.encoder_file, weights_only=True)["teacher"]
    weight = trainer.network.encoder.patch_embed1.proj_2D[0].weight
    assert torch.equal(weight, saved["backbone.patch_embed1.proj_2D.0.weight"])
    patch = trainer.configuration_manager.patch_size
    outputs = trainer.network(torch.randn(2, 1, *patch))
    scales = trainer._get_deep_supervision_scales()
    assert [tuple(o.shape[2:]) for o in outputs] == [
        tuple(round(n * s) for n, s in zip(patch, scale, strict=True)) for scale in scales
    ]


@pytest.mark.parametrize(("name", "warmup"), [("nnUNetTrainerCADS_5epochs", 1), ("nnUNetTrainerCADS_250epochs", 13)])
def test_rates_follow_the_epoch_and_the_part(name, warmup, make_trainer):
    trainer = make_trainer(variants.TRAINERS[name])
    trainer.initialize()
    rates = []
    for epoch in range(trainer.num_epochs):
        trainer.lr_scheduler.step(epoch)
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
    assert rates[warmup] == [trainer.initial_lr] * 2 + [trainer.encoder_lr] * 2
    assert rates[0][0] == pytest.approx(trainer.initial_lr / (warmup + 1))
    assert max(rate[0] for rate in rates) == trainer.initial_lr
    assert 0 < rates[-1][2] < trainer.encoder_lr


def test_a_frozen_encoder_keeps_its_weights_and_learns_afterwards(make_trainer):
    frozen = {"num_epochs": 4, "frozen_encoder_epochs": 2, "use_pretrained_encoder": False}
    trainer = make_trainer(type("Frozen", (nnUNetTrainerCADS,), {"settings": frozen}))
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    for epoch in range(3):
        before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
        trainer.lr_scheduler.step(epoch)
        trainer.train_step(batch)
        changed = {key for key, value in trainer.network.state_dict().items() if not torch.equal(value, before[key])}
        assert any(key.startswith("decoder") for key in changed)
        assert any(key.startswith("encoder") for key in changed) == (epoch == 2)


def test_an_unknown_setting_is_named(make_trainer):
    with pytest.raises(TrainingCannotStart, match="Typing: settings has 'encoder_lrr'"):
        make_trainer(type("Typing", (nnUNetTrainerCADS,), {"settings": {"encoder_lrr": 1}}))


def test_mirroring_is_off_in_training_and_prediction_where_a_variant_says_so(make_trainer):
    trainer = make_trainer(variants.TRAINERS["nnUNetTrainerCADS_demo"])
    *_, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert axes is None and trainer.inference_allowed_mirroring_axes is None
    trainer = make_trainer()
    *_, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert axes == trainer.inference_allowed_mirroring_axes == (0, 1, 2)


def test_the_variants_differ_in_their_settings_alone(make_trainer):
    lengths = ("", "_5epochs", "_50epochs", "_250epochs", "_demo")
    assert set(variants.TRAINERS) >= {f"nnUNetTrainerCADS{s}{n}" for s in ("", "_scratch") for n in lengths}
    for name, trainer_class in variants.TRAINERS.items():
        assert trainer_class.__name__ == name
        assert getattr(nnunetv2_cads_trainers, name) is trainer_class
        assert pickle.loads(pickle.dumps(trainer_class)) is trainer_class
    trainer = make_trainer(variants.TRAINERS["nnUNetTrainerCADS_scratch_50epochs"])
    assert (trainer.num_epochs, trainer.use_pretrained_encoder) == (50, False)
    assert trainer.my_init_kwargs.keys() == {"plans", "configuration", "fold", "dataset_json", "device"}
    build = functools.partial(trainer.build_network_architecture, trainer.plans_manager, trainer.configuration_manager)
    assert build(1, 3, enable_deep_supervision=False).decoder.deep_supervision is False
