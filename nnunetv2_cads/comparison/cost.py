"""What a training costs: parameters and FLOPs of its network, and the seconds that a test case takes."""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_cads.comparison.design import Design
from pretraining.run.estimate import forward_flops

TILE_STEP = 0.5
"""Of nnU-Net's sliding window, in patches."""
UNTIMED = 2
"""First steps, which are slower, are left out of a timing."""


def network_cost(trainer: nnUNetTrainer) -> dict[str, float]:
    """Parameters, and FLOPs of a step: forward counted, backward taken as twice of it."""
    manager, network = trainer.configuration_manager, getattr(trainer.network, "_orig_mod", trainer.network)
    images = torch.zeros(manager.batch_size, trainer.num_input_channels, *manager.patch_size, device=trainer.device)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "flops_per_iteration": 3.0 * forward_flops(network, images),
    }


@torch.inference_mode()
def seconds_per_case(trainer: nnUNetTrainer, design: Design) -> float:
    """Of segmenting a test case: the time of one patch, times the patches of a case and their mirror images."""
    manager, network = trainer.configuration_manager, trainer.network.eval()
    images = torch.zeros(1, trainer.num_input_channels, *manager.patch_size, device=trainer.device)
    seconds = []
    for _ in range(UNTIMED):
        started = time.perf_counter()
        with torch.autocast(trainer.device.type, enabled=trainer.device.type == "cuda"):  # as nnU-Net predicts
            float(network(images)[0].sum())  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    data = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(design.test))
    patches = np.mean([patches_of(data.load_case(case)[0].shape[1:], manager.patch_size) for case in design.test])
    return seconds[-1] * float(patches) * 2 ** len(trainer.inference_allowed_mirroring_axes or ())


def patches_of(shape: Sequence[int], patch_size: Sequence[int]) -> int:
    """Patches of nnU-Net's sliding window over a case.

    Args:
        shape: (D, H, W) of the case.
        patch_size: (D, H, W), or (H, W) for a network of slices.
    """
    slices, within = (1, shape) if len(patch_size) == len(shape) else (shape[0], shape[1:])
    padded = [max(edges) for edges in zip(within, patch_size, strict=True)]
    return slices * math.prod(map(len, compute_steps_for_sliding_window(padded, patch_size, TILE_STEP)))


def device_name(device: torch.device) -> str:
    """The name of a GPU, or ``cpu`` with the number of threads."""
    threads = torch.get_num_threads()
    cpu = f"cpu, {threads} thread{'s' * (threads > 1)}"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
