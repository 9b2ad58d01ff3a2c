"""Plans from fingerprints alone: configurations, sizes, intensities by channel."""

import json

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_cads.experiment_planning.planner import CADSPlanner
from nnunetv2_cads.network_architecture import PVTUNet

PROPERTIES = {"max": 900, "mean": 90.0, "median": 80, "min": -900, "percentile_00_5": -50, "percentile_99_5": 300}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Plans a data set of equal images, given their shape, spacing and channels; returns the plans as saved."""

    def make(shape, spacing_mm, channels=("CT",), **options):
        for kind in ("raw", "preprocessed"):
            monkeypatch.setenv(f"nnUNet_{kind}", str(tmp_path / kind))
            (tmp_path / kind / "Dataset001_Any").mkdir(parents=True, exist_ok=True)
        raw, preprocessed = (tmp_path / kind / "Dataset001_Any" for kind in ("raw", "preprocessed"))
        files = {"images": [f"{i}.nii.gz" for i in range(len(channels))], "label": "label.nii.gz"}
        dataset = {
            "channel_names": {str(i): name for i, name in enumerate(channels)},
            "labels": {str(i): i for i in range(14)},
            "numTraining": 100,
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "SimpleITKIO",
            "dataset": {f"case_{i}": files for i in range(100)},
        }
        fingerprint = {
            "spacings": [list(spacing_mm)] * 100,
            "shapes_after_crop": [list(shape)] * 100,
            "foreground_intensity_properties_per_channel": {
                str(i): {**PROPERTIES, "std": 40.0} for i in range(len(channels))
            },
            "median_relative_size_after_cropping": 1.0,
        }
        (raw / "dataset.json").write_text(json.dumps(dataset))
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        planner = CADSPlanner(1, **options)
        planner.plan_experiment()
        return json.loads((preprocessed / f"{planner.plans_identifier}.json").read_text())

    return make


def test_planning_for_cotr_takes_its_memory_and_leaves_2d(plan):
    ours, cotr = (plan((200, 512, 512), (2.5, 0.8, 0.8), network=name) for name in ("PVT-UNet", "CoTr"))
    assert (ours["cads"]["network"], cotr["cads"]["network"]) == ("PVT-UNet", "CoTr")
    sizes = [
        (plans["configurations"]["3d_fullres"]["batch_size"], plans["configurations"]["3d_fullres"]["patch_size"])
        for plans in (ours, cotr)
    ]
    assert sizes == [(2, [48, 192, 192]), (2, [48, 128, 160])]
    assert ours["configurations"]["2d"] == cotr["configurations"]["2d"]


@pytest.mark.parametrize("slices", [100, 200, 500])
def test_an_abdomen_at_8_gb(plan, slices):
    plans = plan((slices, 512, 512), (2.5, 0.8, 0.8))
    assert set(plans["configurations"]) == {"2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"}
    full, low, flat = (plans["configurations"][name] for name in ("3d_fullres", "3d_lowres", "2d"))
    assert (full["patch_size"], full["batch_size"]) == ([48, 192, 192], 2)
    assert max(low["spacing"]) > 2.5 or min(low["spacing"]) > 0.8
    assert flat["batch_size"] >= 2
    assert all(n % 32 == 0 for n in flat["patch_size"])


def test_the_axis_of_the_largest_spacing_comes_first(plan):
    plans = plan((512, 200, 512), (0.8, 2.5, 0.8))
    assert plans["transpose_forward"] == [1, 0, 2]
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [48, 192, 192]


def test_only_ct_channels_get_the_intensities_of_pretraining(plan):
    plans = plan((60, 90, 90), (1.0, 1.0, 1.0), channels=("CT", "T1"))
    assert plans["configurations"]["3d_fullres"]["normalization_schemes"] == ["CTNormalization", "ZScoreNormalization"]
    properties = plans["foreground_intensity_properties_per_channel"]
    assert (properties["0"]["mean"], properties["0"]["std"], properties["0"]["max"]) == (0, 1024, 900)
    assert properties["1"] == {**PROPERTIES, "std": 40.0}


def test_nnunet_normalisation_and_plans_name(plan):
    plans = plan((60, 90, 90), (1.0, 1.0, 1.0), nnunet_normalization=True, plans_name="Other")
    assert plans["plans_name"] == "Other"
    assert plans["foreground_intensity_properties_per_channel"]["0"] == {**PROPERTIES, "std": 40.0}


def test_images_of_one_slice_get_the_2d_configuration_alone(plan):
    plans = plan((1, 300, 260), (999.0, 1.0, 1.0))
    assert set(plans["configurations"]) == {"2d"}
    assert plans["configurations"]["2d"]["patch_size"] == [288, 256]


def test_nnunet_reads_the_plans(plan):
    manager = PlansManager(plan((200, 512, 512), (2.5, 0.8, 0.8)))
    for name in ("2d", "3d_fullres", "3d_cascade_fullres"):
        configuration = manager.get_configuration(name)
        assert configuration.network_arch_class_name == f"{PVTUNet.__module__}.PVTUNet"
        assert configuration.pool_op_kernel_sizes[0] == [1] * len(configuration.patch_size)
