"""What we rely on in nnU-Net. After an update of nnU-Net, a failure here names what has changed."""

import importlib
import inspect
import json
import os
from pathlib import Path

import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_cads.experiment_planning import plan_and_preprocess
from nnunetv2_cads.network_architecture.pvt_unet import plans_architecture
from nnunetv2_cads.training.discovery import nnunetv2_cads_trainers
from nnunetv2_cads.training.schedule import EpochSchedule

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
        "do_split": SELF,
        "load_checkpoint": (*SELF, "filename_or_checkpoint"),
        "print_to_log_file": (*SELF, "args", "also_print_to_console", "add_timestamp"),
        "_get_deep_supervision_scales": SELF,  # private hooks: nnU-Net has no public ones for the sizes of labels
        "_build_loss": SELF,  # and the weights of outputs
    },
    "nnunetv2.training.dataloading.nnunet_dataset": {"infer_dataset_class": ("folder",)},
    "nnunetv2.training.dataloading.nnunet_dataset.nnUNetDatasetBlosc2": {"get_identifiers": ("folder",)},
    "nnunetv2.training.loss.deep_supervision.DeepSupervisionWrapper": {"__init__": (*SELF, "loss", "weight_factors")},
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
    "nnunetv2.experiment_planning.verify_dataset_integrity": {"verify_dataset_integrity": ("folder", "num_processes")},
    "nnunetv2.imageio.base_reader_writer.BaseReaderWriter": {"read_seg": (*SELF, "seg_fname")},
    "nnunetv2.imageio.reader_writer_registry": {
        "determine_reader_writer_from_dataset_json": ("dataset_json_content",),
    },
    "nnunetv2.utilities.utils": {"get_filenames_of_train_images_and_targets": ("raw_dataset_folder", "dataset_json")},
    "nnunetv2.utilities.dataset_name_id_conversion": {
        "find_candidate_datasets": ("dataset_id",),
        "convert_id_to_dataset_name": ("dataset_id",),
    },
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

TRAINER_ATTRIBUTES = (
    *("device", "local_rank", "is_ddp", "is_cascaded", "was_initialized", "num_input_channels", "network"),
    *("plans_manager", "configuration_manager", "label_manager", "dataset_json", "initial_lr", "weight_decay"),
    *("num_epochs", "current_epoch", "num_iterations_per_epoch", "num_val_iterations_per_epoch"),
    *("enable_deep_supervision", "inference_allowed_mirroring_axes", "output_folder", "optimizer", "lr_scheduler"),
)
PLANNER_ATTRIBUTES = (
    *("dataset_json", "UNet_vram_target_GB", "UNet_min_batch_size", "max_dataset_covered", "plans_identifier"),
)
"""What an instance must have, whatever it is."""


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


CHECKPOINT_KEYS = {
    *("network_weights", "optimizer_state", "trainer_name", "init_args", "inference_allowed_mirroring_axes"),
}
"""What we read of checkpoints, or rely on nnU-Net to keep there for prediction."""

ARCHITECTURE_KEYS = {"network_class_name", "arch_kwargs", "_kw_requires_import"}
CONFIGURATION_KEYS = {"architecture", "patch_size", "batch_size", "spacing", "normalization_schemes"}
INTENSITY_KEYS = {"percentile_00_5", "percentile_99_5", "mean", "std"}


@pytest.fixture
def environment(nnunet_project, monkeypatch, tmp_path):
    """The project's folders, but for results."""
    for name, value in nnunet_project.environment(nnUNet_results=str(tmp_path)).items():
        if name.startswith("nnUNet_"):
            monkeypatch.setenv(name, value)
    return nnunet_project


@pytest.fixture
def trainer(environment):
    """nnU-Net's own, initialised."""
    folder = environment.root / "preprocessed" / "Dataset001_Blobs"
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    made = nnUNetTrainer({**plans, "continue_training": False}, "3d_fullres", 0, dataset, torch.device("cpu"))
    made.initialize()
    return made


def test_attributes_of_a_trainer(trainer):
    assert [name for name in TRAINER_ATTRIBUTES if not hasattr(trainer, name)] == []


def test_attributes_of_a_planner(environment):
    planner = ExperimentPlanner(1)
    assert [name for name in PLANNER_ATTRIBUTES if not hasattr(planner, name)] == []


def test_the_keys_of_a_checkpoint(trainer, tmp_path):
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    content = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    assert sorted(CHECKPOINT_KEYS - content.keys()) == []
    assert content["trainer_name"] == "nnUNetTrainer"
    assert content["network_weights"].keys() == trainer.network.state_dict().keys()
    groups = [len(group["params"]) for group in content["optimizer_state"]["param_groups"]]
    assert groups == [len(list(trainer.network.parameters()))]


def test_the_scheduler_is_called_with_the_epoch(trainer):
    """`EpochSchedule` sets rates from the epoch alone; a scheduler that counted its calls would need another hook."""
    trainer.lr_scheduler = EpochSchedule(trainer.optimizer, (lambda epoch: 0.5**epoch,))
    trainer.current_epoch = 3
    trainer.on_train_epoch_start()
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.initial_lr / 8


def test_the_keys_of_plans(nnunet_project):
    folder = nnunet_project.root / "preprocessed" / "Dataset001_Blobs"
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    for name in ("2d", "3d_fullres"):
        configuration = plans["configurations"][name]
        assert sorted(CONFIGURATION_KEYS - configuration.keys()) == []
        assert configuration["architecture"].keys() == ARCHITECTURE_KEYS == plans_architecture(3).keys()
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
    for command in (train, (plan_and_preprocess.main, "-d", 1)):
        with pytest.raises(SystemExit, match=r"needs nnU-Net 2\.8\.1 or newer, but 2\.7\.9 is installed: pip install"):
            nnunet_project.call(*command)
