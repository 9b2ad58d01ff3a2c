"""CADSPlanner: nnU-Net's planner for PVT-UNet and for the intensities that pre-training saw.

Source: CADS method, "Data" and "Downstream: PVT-UNet". Fingerprint, spacing, axis order, resampling, the choice of
configurations and all files are nnU-Net's.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_cads.encoder_file.record import CT_SCHEME, PRETRAINING, EncoderRecord
from nnunetv2_cads.experiment_planning.memory_estimate import largest_batch_size
from nnunetv2_cads.experiment_planning.patch_size import plan_patch_size
from nnunetv2_cads.network_architecture.pvt_unet import plans_architecture

PLANS_NAME = "nnUNetCADSPlans"

GB = 1024**3


class CADSPlanner(ExperimentPlanner):
    """Plans PVT-UNet. Constructed as nnU-Net constructs its planners.

    Args (in addition to nnU-Net's):
        nnunet_normalization: keep nnU-Net's own CT normalisation instead of pre-training's.
        pretraining: what it saw; all fields are set.
        network: whose memory is planned for, a key of `NETWORKS`. Plans name PVT-UNet all the same: the trainers choose
            the network.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = PLANS_NAME,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
        nnunet_normalization: bool = False,
        pretraining: EncoderRecord = PRETRAINING,
        network: str = "PVT-UNet",
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )
        self.nnunet_normalization, self.pretraining, self.network = nnunet_normalization, pretraining, network

    @staticmethod
    def static_estimate_VRAM_usage(*args: Any, **kwargs: Any) -> int:
        """1: nnU-Net estimates its own networks; the sizes that follow from this are replaced by ours."""
        return 1

    def get_plans_for_configuration(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[float],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict[str, Any]:
        """nnU-Net's plan of a configuration, with PVT-UNet, its patch and its batch size."""
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        channels = len(self.dataset_json.get("channel_names", self.dataset_json.get("modality")))
        classes = len(self.dataset_json["labels"])
        target = int(self.UNet_vram_target_GB * GB)

        def batch_size(patch: tuple[int, ...]) -> int:
            return largest_batch_size(target, patch, channels, classes, self.network)

        patch = plan_patch_size(spacing, median_shape, lambda size: batch_size(size) >= self.UNet_min_batch_size)
        # nnU-Net's precaution against overfitting: a batch shows at most this part of the data
        most = round(approximate_n_voxels_dataset * self.max_dataset_covered / np.prod(patch, dtype=np.float64))
        plan["patch_size"] = patch
        plan["batch_size"] = max(min(batch_size(patch), most), self.UNet_min_batch_size)
        plan["architecture"] = plans_architecture(len(patch))
        return plan

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Add the intensities, the record of pre-training and the network planned for, then save."""
        if not self.nnunet_normalization:
            self._set_pretraining_intensities(plans)
        record = self.pretraining.to_file()
        pretraining = {name: record[name] for name in ("spacing_mm", "clip_hu", "axes")}
        plans["cads"] = {
            "pretraining": pretraining,
            "nnunet_normalization": self.nnunet_normalization,
            "network": self.network,
        }
        super().save_plans(plans)

    def _set_pretraining_intensities(self, plans: dict[str, Any]) -> None:
        """Replace the numbers of the CT channels in a copy: other planners use the same fingerprint.

        With them, nnU-Net's stock `CTNormalization` clips and scales as pre-training does.
        """
        record = self.pretraining
        seen = {"percentile_00_5": record.clip_hu[0], "percentile_99_5": record.clip_hu[1]}
        seen |= {"mean": record.intensity_center_hu, "std": record.intensity_scale_hu}
        seen = {name: float(value) for name, value in seen.items()}
        schemes, _ = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        properties = copy.deepcopy(plans["foreground_intensity_properties_per_channel"])
        for channel, scheme in enumerate(schemes):
            if scheme == CT_SCHEME:
                properties[str(channel)] = {**properties[str(channel)], **seen}
        plans["foreground_intensity_properties_per_channel"] = properties
