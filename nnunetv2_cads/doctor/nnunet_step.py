"""One step of fine-tuning and one prediction through nnU-Net, beside the same in float64 on the CPU.

    python -m nnunetv2_cads.doctor.nnunet_step DEVICE FOLDER

A process of its own, since nnU-Net takes its folders from the environment when it is imported: FOLDER is for what it
writes. The image is noise. Prints one line of JSON: by what it is of, how far from the truth, relative to its length.
"""

import contextlib
import copy
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PATCH_SIZE, BATCH_SIZE = (16, 32, 32), 2
CLASSES = {"background": 0, "one": 1, "two": 2}
SCAN = (16, 40, 48)
"""Larger than the patch, so that windows overlap."""
PLANS: dict[str, Any] = {
    "dataset_name": "Dataset000_SelfTest",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
    "configurations": {
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": BATCH_SIZE,
            "patch_size": list(PATCH_SIZE),
            "spacing": [1.0, 1.0, 1.0],
            "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False],
            "batch_dice": False,
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {},
                "_kw_requires_import": [],
            },
        }
    },
}
DATASET = {"channel_names": {"0": "CT"}, "labels": CLASSES, "numTraining": 1, "file_ending": ".nii.gz"}


def measure(device: torch.device) -> dict[str, float]:
    """Loss, step and prediction on ``device``."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunetv2_cads.training.variants import nnUNetTrainerCADS_scratch

    torch.manual_seed(0)
    trainer = nnUNetTrainerCADS_scratch(
        copy.deepcopy(PLANS) | {"continue_training": False}, "3d_fullres", 0, DATASET, device
    )
    trainer.initialize()
    trainer.optimizer.param_groups[0]["lr"] = trainer.initial_lr
    network = trainer._plain_network().eval()  # no stochastic depth, which would differ; nothing else changes
    exact = copy.deepcopy(network).cpu().double()
    image = torch.randn(BATCH_SIZE, 1, *PATCH_SIZE)
    labels = [torch.randint(0, len(CLASSES), (BATCH_SIZE, 1, *output.shape[2:])) for output in exact(image.double())]
    loss = trainer.train_step({"data": image, "target": [label.float() for label in labels]})["loss"]
    truth = trainer.loss(exact(image.double()), [label.float() for label in labels])
    truth.backward()
    torch.nn.utils.clip_grad_norm_(exact.parameters(), 12)  # as nnU-Net's step
    found = {
        "loss": abs(float(loss) - truth.item()) / abs(truth.item()),
        "gradients": _relative(
            torch.cat([p.grad.detach().cpu().double().ravel() for p in network.parameters() if p.grad is not None]),
            torch.cat([p.grad.ravel() for p in exact.parameters() if p.grad is not None]),
        ),
    }
    exact.load_state_dict(network.state_dict())
    logits = []
    for where, model in ((device, network), (torch.device("cpu"), exact)):
        predictor = nnUNetPredictor(device=where, use_mirroring=False, perform_everything_on_device=where.type != "cpu")
        model.decoder.deep_supervision = False
        predictor.manual_initialization(
            model, trainer.plans_manager, trainer.configuration_manager, None, DATASET, type(trainer).__name__, None
        )
        scan = torch.randn(1, *SCAN, generator=torch.Generator().manual_seed(1))
        scan = scan.double() if model is exact else scan
        logits.append(predictor.predict_sliding_window_return_logits(scan).cpu().double())
    return found | {"prediction": _relative(*logits)}


def _relative(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


def main() -> int:
    """The process of one check of `cads_doctor --self-test`."""
    device, folder = sys.argv[1:]
    os.environ.update(dict.fromkeys(("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"), folder))
    os.environ["nnUNet_compile"] = "f"
    data = Path(folder, PLANS["dataset_name"], PLANS["configurations"]["3d_fullres"]["data_identifier"])
    data.mkdir(parents=True)
    (data / "case.b2nd").touch()  # the trainer looks what kind of files there are
    with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net's remarks
        found = measure(torch.device(device))
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
