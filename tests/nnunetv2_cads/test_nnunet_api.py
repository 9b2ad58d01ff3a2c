"""What we rely on in nnU-Net. After an update of nnU-Net, a failure here names what has changed."""

import importlib
import inspect
import json
import os
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock, call

import pytest
import torch
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from torch import nn

from nnunetv2_cads.experiment_planning import cli
from nnunetv2_cads.experiment_planning.planner import architecture
from nnunetv2_cads.training.discovery import nnunetv2_cads_trainers

SELF = ("self",)
FUNCTIONS = {
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer": {
        "__init__": (*SELF, "plans", "configuration", "fold", "dataset_json", "device"),
        "initialize": SELF,
        "build_network_architecture": (
            *("plans_manager", "configuration_manager", "num_input_channels", "num_output_channels"),
            "enable_deep_supervision",
        ),
        "configure_optimizers": SELF,
        "configure_rotation_dummyDA_mirroring_and_inital_patch_size": SELF,
        "on_train_start": SELF,
        "load_checkpoint": (*SELF, "filename_or_checkpoint"),
        "print_to_log_file": (*SELF, "args", "also_print_to_console", "add_timestamp"),
        "_get_deep_supervision_scales": SELF,  # the one private hook: nnU-Net has no public one for label sizes
    },
    "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner.ExperimentPlanner": {
        "__init__": (
            *(*SELF, "dataset_name_or_id", "gpu_memory_target_in_gb", "preprocessor_name", "plans_name"),
            *("overwrite_target_spacing", "suppress_transpose"),
        ),
        "static_estimate_VRAM_usage": (
            *("patch_size", "input_channels", "output_channels", "arch_class_name", "arch_kwargs"),
            "arch_kwargs_req_import",
        ),
        "get_plans_for_configuration": (
            *(*SELF, "spacing", "median_shape", "data_identifier", "approximate_n_voxels_dataset", "_cache"),
        ),
        "determine_normalization_scheme_and_whether_mask_is_used_for_norm": SELF,
        "plan_experiment": SELF,
        "save_plans": (*SELF, "plans"),
    },
    "nnunetv2.experiment_planning.plan_and_preprocess_api": {
        "extract_fingerprints": (
            *("dataset_ids", "fingerprint_extractor_class_name", "num_processes", "check_dataset_integrity"),
            *("clean", "verbose", "show_progress_bar"),
        ),
        "plan_experiment_dataset": (
            *("dataset_id", "experiment_planner_class", "gpu_memory_target_in_gb", "preprocess_class_name"),
            *("overwrite_target_spacing", "overwrite_plans_name"),
        ),
        "preprocess": (
            *("dataset_ids", "plans_identifier", "configurations", "num_processes", "verbose", "show_progress_bar"),
        ),
    },
    "nnunetv2.utilities.dataset_name_id_conversion": {"convert_id_to_dataset_name": ("dataset_id",)},
    "nnunetv2.utilities.find_objects": {"recursive_find_trainer_class_by_name": ("trainer_name",)},
    "nnunetv2.utilities.find_class_by_name": {
        "recursive_find_python_class": ("folder", "class_name", "current_module"),
    },
    "nnunetv2.paths.nnUNet_raw": {"is_set": (), "get": ()},
}
"""Owner, function and the names of its parameters, which may be followed by others that have defaults."""

ATTRIBUTES = {
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer": (
        *("set_deep_supervision_enabled", "train_step", "save_checkpoint", "on_train_epoch_start", "run_training"),
    ),
    "nnunetv2.utilities.plans_handling.plans_handler.PlansManager": ("foreground_intensity_properties_per_channel",),
    "nnunetv2.utilities.plans_handling.plans_handler.ConfigurationManager": (
        *("patch_size", "spacing", "normalization_schemes"),
    ),
    "nnunetv2.utilities.label_handling.label_handling.LabelManager": ("foreground_labels", "num_segmentation_heads"),
    "nnunetv2.paths.nnUNet_raw": ("env_var_name",),
}
"""Owner and what it must have, whatever it is."""

INSTANCE_ATTRIBUTES = {
    "nnunetv2.training.nnUNetTrainer.nnUNetTrainer.nnUNetTrainer": (
        *("device", "local_rank", "is_ddp", "is_cascaded", "was_initialized", "num_input_channels", "network"),
        *("plans_manager", "configuration_manager", "label_manager", "dataset_json", "initial_lr", "weight_decay"),
        *("num_epochs", "current_epoch", "num_iterations_per_epoch", "num_val_iterations_per_epoch"),
        *("enable_deep_supervision", "inference_allowed_mirroring_axes", "output_folder"),
    ),
    "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner.ExperimentPlanner": (
        *("dataset_json", "UNet_vram_target_GB", "UNet_min_batch_size", "max_dataset_covered", "plans_identifier"),
    ),
}
"""Owner and what its own ``__init__`` sets."""


def find(dotted: str):
    """A module, or something in one."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        owner, name = dotted.rsplit(".", 1)
        return getattr(find(owner), name)


@pytest.mark.parametrize("owner", FUNCTIONS)
def test_functions_and_their_parameters(owner):
    changed = []
    for name, expected in FUNCTIONS[owner].items():
        function = inspect.getattr_static(find(owner), name, None) and getattr(find(owner), name)
        if function is None:
            changed.append(f"{owner}.{name} is gone")
            continue
        parameters = list(inspect.signature(function).parameters.values())
        further = [p.name for p in parameters[len(expected) :] if p.default is p.empty]
        found = tuple(p.name for p in parameters[: len(expected)])
        if found != expected or further:
            changed.append(f"{owner}.{name}{expected} is now {inspect.signature(function)}")
    assert changed == []


@pytest.mark.parametrize("owner", ATTRIBUTES)
def test_attributes(owner):
    assert [name for name in ATTRIBUTES[owner] if not hasattr(find(owner), name)] == []


@pytest.mark.parametrize("owner", INSTANCE_ATTRIBUTES)
def test_attributes_of_instances(owner):
    source = inspect.getsource(find(owner).__init__)
    assert [name for name in INSTANCE_ATTRIBUTES[owner] if f"self.{name} =" not in source] == []


CHECKPOINT_KEYS = {
    *("network_weights", "optimizer_state", "trainer_name", "init_args", "inference_allowed_mirroring_axes"),
}
"""What we read of checkpoints, or rely on nnU-Net to keep there for prediction."""

ARCHITECTURE_KEYS = {"network_class_name", "arch_kwargs", "_kw_requires_import"}
CONFIGURATION_KEYS = {"architecture", "patch_size", "batch_size", "spacing", "normalization_schemes"}
INTENSITY_KEYS = {"percentile_00_5", "percentile_99_5", "mean", "std"}


@pytest.fixture
def stand_in(tmp_path):
    """What of a trainer nnU-Net's functions need to write a checkpoint and to begin an epoch."""
    network = nn.Linear(1, 1)
    return SimpleNamespace(
        network=network,
        optimizer=torch.optim.AdamW(network.parameters()),
        logger=MetaLogger(str(tmp_path), resume=False),
        lr_scheduler=Mock(),
        current_epoch=7,
        my_init_kwargs={},
        print_to_log_file=lambda *args: None,
        **dict.fromkeys(("local_rank", "disable_checkpointing", "is_ddp"), 0),
        **dict.fromkeys(("grad_scaler", "_best_ema", "inference_allowed_mirroring_axes", "device")),
    )


def test_the_keys_of_a_checkpoint(stand_in, tmp_path):
    file = tmp_path / "checkpoint.pth"
    nnUNetTrainer.save_checkpoint(stand_in, str(file))
    content = torch.load(file, weights_only=False)
    assert sorted(CHECKPOINT_KEYS - content.keys()) == []
    assert content["trainer_name"] == "SimpleNamespace"
    assert content["network_weights"].keys() == {"weight", "bias"}
    assert [len(group["params"]) for group in content["optimizer_state"]["param_groups"]] == [2]


def test_the_scheduler_is_called_with_the_epoch(stand_in):
    nnUNetTrainer.on_train_epoch_start(stand_in)
    assert stand_in.lr_scheduler.step.call_args == call(7)


def test_the_keys_of_plans(nnunet_project):
    folder = nnunet_project.root / "preprocessed" / "Dataset001_Blobs"
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    for name in ("2d", "3d_fullres"):
        configuration = plans["configurations"][name]
        assert sorted(CONFIGURATION_KEYS - configuration.keys()) == []
        assert configuration["architecture"].keys() == ARCHITECTURE_KEYS == architecture(3).keys()
        assert sorted({"conv_op", "strides"} - configuration["architecture"]["arch_kwargs"].keys()) == []
    assert sorted(INTENSITY_KEYS - plans["foreground_intensity_properties_per_channel"]["0"].keys()) == []


def test_every_folder_of_the_variable_is_searched_for_trainers(monkeypatch, tmp_path):
    folders = [tmp_path, Path(nnunetv2_cads_trainers.__file__).parent]
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(map(str, folders)))
    assert recursive_find_trainer_class_by_name("nnUNetTrainerCADS").__name__ == "nnUNetTrainerCADS"
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    with pytest.raises(RuntimeError, match="nnUNet_extTrainer"):
        recursive_find_trainer_class_by_name("nnUNetTrainerCADS")


def test_an_older_nnunet_ends_every_command_with_a_sentence(nnunet_project, monkeypatch, tmp_path):
    metadata = tmp_path / "nnunetv2-2.7.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.7.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    train = (run_training_entry, 1, "3d_fullres", 0, "-tr", "nnUNetTrainerCADS", "-device", "cpu")
    for command in (train, (cli.main, "-d", 1)):
        with pytest.raises(SystemExit, match=r"needs nnU-Net 2\.8\.1 or newer, but 2\.7\.9 is installed: pip install"):
            nnunet_project.call(*command)
