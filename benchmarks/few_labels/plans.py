"""nnU-Net's own planning and preprocessing, with the patch and batch that every arm of the study shares."""

import json
from pathlib import Path

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, preprocess_dataset

DEFAULT_PLANS = "nnUNetPlans"
PLANS = {DEFAULT_PLANS: ExperimentPlanner, "nnUNetResEncUNetMPlans": nnUNetPlannerResEncM}
"""Planner of each plans file; both plan the same data, so they share what is preprocessed."""
CONFIGURATION = "3d_fullres"
AMPLE_GB = 8
"""GPU memory that the planners may plan with: more than the small patch needs, so that it is never made smaller."""


def plan_and_preprocess(dataset: Path, preprocessed: Path, patch_size: tuple[int, int, int], batch_size: int) -> None:
    """Plan and preprocess a raw dataset once; nnU-Net's folders must be in the environment.

    Args:
        dataset: folder of the raw dataset, below ``nnUNet_raw``.
        preprocessed: the folder ``nnUNet_preprocessed``.
        patch_size: of every arm.
        batch_size: of every arm.
    """
    folder, dataset_id = preprocessed / dataset.name, int(dataset.name[7:10])
    done = folder / "study.json"
    if not done.exists():
        extract_fingerprint_dataset(dataset_id, num_processes=1, show_progress_bar=False)
        for name, planner in PLANS.items():
            _with_fixed_patch(planner, patch_size, batch_size)(dataset_id, AMPLE_GB, plans_name=name).plan_experiment()
        preprocess_dataset(dataset_id, DEFAULT_PLANS, (CONFIGURATION,), (1,), show_progress_bar=False)
        done.write_text(json.dumps({"patch_size": patch_size, "batch_size": batch_size}), encoding="utf-8")


def plans_in_window(dataset: Path, preprocessed: Path, window: tuple[float, float], base: str = DEFAULT_PLANS) -> str:
    """Preprocess a planned dataset once more, with HU clipped to a window and scaled by it.

    nnU-Net's own plans clip to the intensities of the labels and scale by their mean and deviation.

    Args:
        dataset: folder of the raw dataset.
        preprocessed: the folder ``nnUNet_preprocessed``.
        window: lowest and highest HU.
        base: name in `PLANS`, of which all but intensities and data is kept.

    Returns:
        The name of the plans.
    """
    folder, dataset_id = preprocessed / dataset.name, int(dataset.name[7:10])
    low, high = window
    name, data = (f"{plans}_window_{low:g}_{high:g}" for plans in (base, DEFAULT_PLANS))
    done = folder / f"{name}.json"
    if done.exists():
        return name
    plans = read_plans(folder, base) | {"plans_name": name}
    seen = {"percentile_00_5": low, "percentile_99_5": high, "mean": (low + high) / 2, "std": (high - low) / 2}
    plans["foreground_intensity_properties_per_channel"]["0"] |= seen
    plans["configurations"][CONFIGURATION]["data_identifier"] = f"{data}_{CONFIGURATION}"
    unfinished = folder / f"{name}_unfinished.json"
    unfinished.write_text(json.dumps(plans), encoding="utf-8")
    if base != DEFAULT_PLANS:
        plans_in_window(dataset, preprocessed, window)
    else:
        preprocess_dataset(dataset_id, unfinished.stem, (CONFIGURATION,), (1,), show_progress_bar=False)
    unfinished.rename(done)
    return name


def read_plans(folder: Path, name: str) -> dict:
    """The plans of this name in a preprocessed dataset's folder."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def _with_fixed_patch(
    planner: type[ExperimentPlanner], patch_size: tuple[int, int, int], batch_size: int
) -> type[ExperimentPlanner]:
    """The planner, with a median image of ``patch_size``: no larger patch makes sense to it then."""

    class FixedPatchPlanner(planner):
        def get_plans_for_configuration(self, spacing, median_shape, data_identifier, n_voxels, _cache) -> dict:
            largest = np.minimum(median_shape, patch_size[-len(spacing) :])
            plan = super().get_plans_for_configuration(spacing, largest, data_identifier, n_voxels, _cache)
            return plan | {"batch_size": batch_size}

    return FixedPatchPlanner
