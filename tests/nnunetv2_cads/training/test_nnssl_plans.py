"""Plans that nnU-Net's development version makes for a checkpoint of nnssl's."""

import json
import os
from pathlib import Path

import torch

from nnunetv2_cads import startup
from nnunetv2_cads.encoder_file.nnssl import ADAPTATION, nnssl_content
from nnunetv2_cads.encoder_file.read import read_encoder_file

PLANS = "ptPlans__cads____Spacing__Default___Norm__Z"


def test_plans_made_for_a_checkpoint_name_the_encoder(nnunet_project, tmp_path):
    encoder = read_encoder_file(nnunet_project.encoder_file)
    content = nnssl_content(encoder.state, encoder.record)
    torch.save(content, tmp_path / "nnssl.pth")
    folder = nnunet_project.root / "preprocessed" / "Dataset001_Blobs"
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    network = content[ADAPTATION]["architecture_plans"]
    plans["configurations"]["3d_fullres"] |= {
        "normalization_schemes": ["ZScoreNormalization"],
        "architecture": {
            "network_class_name": network["arch_class_name"],
            "arch_kwargs": network["arch_kwargs"],
            "_kw_requires_import": network["arch_kwargs_requiring_import"],
        },
    }
    info = {"checkpoint_path": str(tmp_path / "nnssl.pth"), "checkpoint_name": "cads"}
    (folder / f"{PLANS}.json").write_text(json.dumps({**plans, "plans_name": PLANS, "pretrain_info": info}))
    discovery = Path(startup.__file__).parent / "training" / "discovery"
    found = f"{discovery}{os.pathsep}{nnunet_project.trainer_folder}"
    arguments = ("nnUNetv2_train", 1, "3d_fullres", 0, "-device", "cpu", "-p", PLANS, "-tr", "OneStepTrainerCADS")
    printed = nnunet_project.call(*arguments, nnUNet_extTrainer=found)
    assert f"Pre-trained encoder: {tmp_path / 'nnssl.pth'}" in printed
    assert "Encoder keys: 180 matched, 0 missing, 0 unexpected" in printed
    assert "Channel 0 (CT): the plans have ZScoreNormalization, which is not for CT" in printed
    assert "Mean Validation Dice" in printed
