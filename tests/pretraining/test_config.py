"""Defaults of the published run, presets, and refusal of what cannot work."""

import dataclasses

import pytest

from pretraining.config import SETTINGS, PretrainConfig
from pretraining.presets import PRESETS
from pretraining.system.errors import UserError


def test_defaults_are_the_published_run():
    config = PretrainConfig()
    assert config.peak_lr == pytest.approx(5.625e-4)
    assert (config.optim.epochs, config.optim.batch_size, config.optim.warmup_epochs) == (150, 192, 10)
    assert config.optim.weight_decay == (0.04, 0.4) and config.optim.clip_grad == 0.3
    assert config.optim.teacher_momentum == (0.996, 1.0) and config.optim.freeze_last_layer_epochs == 3
    assert (config.model.head_out_dim, config.model.head_batch_norm) == (60_000, False)
    assert config.loss.teacher_temp == (0.04, 0.07) and config.loss.warmup_teacher_temp_epochs == 50
    assert config.view.intensity == "published" and config.view.uniform_sampling


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_saving(name):
    config = PretrainConfig().replace(**PRESETS[name])
    assert (config.distils, config.has_points) == ((False, True) if name in ("small", "demo") else (True, False))
    assert PretrainConfig.from_dict(config.to_dict()) == config


def test_setting_names_are_unique_over_the_sections():
    sections = dataclasses.fields(PretrainConfig)
    assert len(SETTINGS) == sum(len(dataclasses.fields(section.default_factory)) for section in sections)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"warmup_epochs": 200}, "warmup_epochs must be between 0 and epochs (150; give"),
        ({"teacher_temp": (0.0, 0.07)}, "teacher_temp must be positive"),
        ({"crop_size": (16, 90, 96)}, "sampling_patch_size must be such that crop_size (16, 90, 96)"),
        ({"crop_size": (16, 96)}, "crop_size needs 3 values, got 2"),
        ({"crop_size": (12, 96, 96)}, "crop_size must be at least (15, 58, 58)"),
        ({"crop_size": (16, 48, 48)}, "crop_size must be at least (15, 58, 58)"),
        ({"sampling_patch_size": (0, 8, 8)}, "sampling_patch_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"head_hidden_dim": 0}, "head_hidden_dim must be at least 1, got 0"),
        ({"adam_betas": (0.9, 1.0)}, "adam_betas must be in [0, 1), got (0.9, 1.0)"),
        ({"adam_eps": 0.0}, "adam_eps must be positive, got 0.0"),
        ({"amp": "int8"}, "amp must be one of none, bf16, fp16"),
        ({"learning_rate": 1}, "setting 'learning_rate' is unknown"),
    ],
)
def test_bad_values_are_named(settings, part):
    with pytest.raises(UserError) as error:
        PretrainConfig().replace(**settings)
    assert part in str(error.value)


def test_views_that_a_run_does_not_cut_are_not_checked():
    assert PretrainConfig().replace(**PRESETS["demo"], window_slices=12).view.window_slices == 12


def test_a_configuration_of_before_a_setting_was_there_has_its_default():
    content = PretrainConfig().to_dict()
    assert content["optim"].pop("adam_betas") == [0.9, 0.999] and content["optim"].pop("adam_eps") == 1e-8
    assert PretrainConfig.from_dict(content) == PretrainConfig()


def test_a_section_that_holds_no_settings_is_refused():
    with pytest.raises(UserError, match=r"config section 'view' must hold settings by name, got \[1, 2\]"):
        PretrainConfig.from_dict({**PretrainConfig().to_dict(), "view": [1, 2]})


def test_unknown_section_of_a_saved_config_is_refused():
    with pytest.raises(UserError, match="section 'modle' is unknown"):
        PretrainConfig.from_dict({**PretrainConfig().to_dict(), "modle": {}})
