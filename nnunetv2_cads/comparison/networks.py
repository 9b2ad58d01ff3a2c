"""Plans of an arm: the user's own, with the network of the arm where the trainer does not bring one."""

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncM,
)

from nnunetv2_cads.comparison.arms import NNSSL, PLAIN, RESENC_M, Arm
from nnunetv2_cads.comparison.dataset import Dataset
from nnunetv2_cads.comparison.nnssl_resenc import check_patch, resenc_architecture
from pretraining.system.errors import UserError
from pretraining.system.worker_pool import changed_environment

PLANNERS: Mapping[str, type[ExperimentPlanner]] = {
    PLAIN: ExperimentPlanner,
    RESENC_M: nnUNetPlannerResEncM,
}
AMPLE_GB = 1000
"""GPU memory to plan a network with whose patch is given: never too little."""
MANY_VOXELS = 1e12
"""Of a dataset that is large enough for any batch."""


def plans_of_arm(dataset: Dataset, arm: Arm) -> dict[str, Any]:
    """The plans that an arm trains with: patch, batch, spacing and intensities are the user's in all of them.

    Raises:
        UserError: the network of the arm cannot have the patch of these plans.
    """
    if arm.network is None:
        return dataset.plans
    configuration = dataset.plans["configurations"][dataset.configuration]
    if arm.network == NNSSL:
        architecture = resenc_architecture(arm.encoder)
        check_patch(arm.encoder, architecture, tuple(configuration["patch_size"]))
    else:
        architecture = _planned_architecture(dataset, configuration, arm)
    return dataset.plans | {
        "plans_name": f"{dataset.plans_name}_{arm.network}",
        "configurations": {
            **dataset.plans["configurations"],
            dataset.configuration: configuration | {"architecture": architecture},
        },
    }


def _planned_architecture(dataset: Dataset, configuration: Mapping[str, Any], arm: Arm) -> dict[str, Any]:
    """What nnU-Net plans for the patch of a configuration."""
    patch_size = np.asarray(configuration["patch_size"])
    with contextlib.ExitStack() as stack:
        stack.enter_context(changed_environment({"nnUNet_n_proc_DA": "1"}))  # its threads; it takes no 0
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))  # its notes on planning
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        planner = PLANNERS[arm.network](dataset.name, AMPLE_GB)
        planned = planner.get_plans_for_configuration(
            configuration["spacing"], patch_size, configuration["data_identifier"], MANY_VOXELS, {}
        )
    if tuple(planned["patch_size"]) != tuple(patch_size):
        raise UserError(
            f"{dataset.plans_name}: arm {arm.name} cannot have its patch {tuple(map(int, patch_size))}, the next is "
            f"{tuple(map(int, planned['patch_size']))}; leave the arm out, or compare with -p nnUNetPlans"
        )
    return planned["architecture"]
