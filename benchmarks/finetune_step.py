"""Fine-tuning and inference: PVT-UNet beside nnU-Net's PlainConvUNet and ResEnc-M, alternating in one process.

    python benchmarks/finetune_step.py [--quick] [--patch 32 96 96] [--batch 2] [--spacing 3 0.8 0.8]

nnU-Net's networks are those that its planner (2.8.1) gives a patch at ``--spacing``; slices thicker than pixels are
what makes it plan flat patches. A training step is nnU-Net's: deep supervision, Dice and cross-entropy on every
resolution but the coarsest, clipping, and each side's own optimizer (SGD with momentum; AdamW for PVT-UNet). Inference
is a forward pass without deep supervision. Both in float32 on the CPU, with malloc as PyTorch finds it.

Seconds are medians; a ratio of times is the median of the ratios within a round, since whatever else a machine does
slows neighbours alike. Memory is the peak of a process of its own above its imports, and FLOPs are PyTorch's count.
``--quick`` leaves ResEnc-M out, takes one step instead of several, and of (48, 192, 192) one patch instead of two.

The last line is a JSON object: per patch, PVT-UNet's `flops`, `train`, `infer` and `memory` over PlainConvUNet's.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from finetune_memory import loss_function
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from torch import nn

from nnunetv2_cads.network_architecture import PVTUNet
from nnunetv2_cads.training.parameter_groups import parameter_groups
from pretraining.run.estimate import forward_flops
from pretraining.system.machine import peak_memory, reset_peak_memory, resident_memory

SIDES = ("PlainConvUNet", "ResEnc-M", "PVT-UNet")
PATCHES = ((32, 96, 96), (48, 192, 192))
LARGE = 1_000_000  # voxels from which --quick takes one patch per step
CLASSES = 14
RESENC_BLOCKS = (1, 3, 4, 6, 6, 6, 6)
CPU = torch.device("cpu")


def build(side: str, patch: tuple[int, ...], spacing: tuple[float, ...]) -> nn.Module:
    """The network that is planned for a patch."""
    if side == "PVT-UNet":
        return PVTUNet(1, CLASSES)
    _, strides, kernels, *_ = get_pool_and_conv_props(spacing, patch, 4, 999999)
    stages = len(strides)
    shared = {
        "input_channels": 1, "num_classes": CLASSES, "n_stages": stages, "conv_op": nn.Conv3d, "conv_bias": True,
        "features_per_stage": [min(320, 32 * 2**i) for i in range(stages)], "kernel_sizes": kernels,
        "strides": strides, "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True,
    }  # fmt: skip
    if side == "PlainConvUNet":
        return PlainConvUNet(n_conv_per_stage=2, n_conv_per_stage_decoder=2, **shared)
    return ResidualEncoderUNet(n_blocks_per_stage=RESENC_BLOCKS[:stages], n_conv_per_stage_decoder=1, **shared)


class Job:
    """One side with its data: the same images for all, labels of the sizes that its outputs have."""

    def __init__(self, side: str, patch: tuple[int, ...], batch: int, spacing: tuple[float, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.network = build(side, patch, spacing)
        self.image = torch.randn(batch, 1, *patch, generator=generator)
        with torch.no_grad():
            sizes = [output.shape[2:] for output in copy.deepcopy(self.network).to("meta")(self.image.to("meta"))]
        self.targets = [torch.randint(0, CLASSES, (batch, 1, *s), generator=generator).float() for s in sizes]
        self.criterion = loss_function(len(sizes))
        if side == "PVT-UNet":
            self.optimizer = torch.optim.AdamW(parameter_groups(self.network, 5e-4, 1e-4, 1e-2), fused=True)
        else:
            self.optimizer = torch.optim.SGD(
                self.network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True
            )

    def train(self) -> None:
        """A step as in nnU-Net's trainer."""
        self.network.train()
        self.network.decoder.deep_supervision = True
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.criterion(self.network(self.image), self.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimizer.step()

    def infer(self) -> None:
        """A forward pass as in nnU-Net's sliding window."""
        self.network.eval()
        self.network.decoder.deep_supervision = False
        with torch.inference_mode():
            self.network(self.image)

    def flops(self) -> int:
        """Of a forward pass with deep supervision."""
        return forward_flops(self.network.to("meta"), self.image.to("meta"))


def print_peak_memory(*case) -> None:
    """Of a step and of inference, as JSON; the optimizer's state exists before the step."""
    imported = resident_memory()
    job = Job(*case)
    for parameter in job.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    job.optimizer.step()
    job.optimizer.zero_grad(set_to_none=True)
    peaks = []
    for action in (job.train, job.infer):
        job.optimizer.zero_grad(set_to_none=True)
        reset_peak_memory(CPU)
        action()
        peaks.append(peak_memory(CPU) - imported)
    sys.stdout.write(json.dumps(peaks) + "\n")


def peak_memory_of(sides: tuple[str, ...], case: tuple, at_once: bool) -> dict[str, list[int]]:
    """`print_peak_memory`, each side in a process of its own, whose malloc gives back at once what is freed."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    children, answers = {}, {}
    for side in sides:
        command = [sys.executable, __file__, "--memory", json.dumps([side, *case])]
        children[side] = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        if not at_once:
            children[side].wait()  # it prints less than a pipe holds
    for side, child in children.items():
        output, _ = child.communicate()
        if child.returncode:
            raise RuntimeError(f"measuring the memory of {side} ended with exit code {child.returncode}")
        answers[side] = json.loads(output.splitlines()[-1])
    return answers


def seconds(action) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(
    patch: tuple[int, ...], batch: int, spacing: tuple[float, ...], warm_up: int, rounds: int, sides: tuple[str, ...]
) -> dict[str, float]:
    """Measure all sides on one patch, print the table, return PVT-UNet's ratios to PlainConvUNet."""
    memory = peak_memory_of(sides, (patch, batch, spacing), at_once=len(sides) < len(SIDES))
    jobs = {side: Job(side, patch, batch, spacing) for side in sides}
    train, infer = ({side: [] for side in sides} for _ in range(2))
    for i in range(warm_up + rounds):
        for results, name in ((train, "train"), (infer, "infer")):
            for side, job in jobs.items():
                taken = seconds(getattr(job, name))
                if i >= warm_up:
                    results[side].append(taken)
    flops = {side: job.flops() for side, job in jobs.items()}
    plain = sides[0]

    def relative(values: dict[str, list[float]], side: str) -> float:
        return statistics.median(a / b for a, b in zip(values[side], values[plain], strict=True))

    size = " x ".join(map(str, patch))
    print(f"\npatch {size}, batch {batch}, {rounds} rounds, {torch.get_num_threads()} threads; in brackets / {plain}")
    print("| network | forward, TFLOP | training step, s | inference, s | peak of training, GiB | of inference, GiB |")
    print("|---|---|---|---|---|---|")
    ratios = {}
    for side in sides:
        ratios[side] = {
            "flops": flops[side] / flops[plain],
            "train": relative(train, side),
            "infer": relative(infer, side),
            "memory": memory[side][0] / memory[plain][0],
        }
        values = (
            flops[side] / 1e12,
            statistics.median(train[side]),
            statistics.median(infer[side]),
            memory[side][0] / 2**30,
        )
        cells = [f"{v:.2f} ({r:.2f})" for v, r in zip(values, ratios[side].values(), strict=True)]
        print(f"| {side} | {' | '.join(cells)} | {memory[side][1] / 2**30:.2f} |", flush=True)
    return {name: round(value, 3) for name, value in ratios["PVT-UNet"].items()}


def main() -> None:
    """Compare on each patch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under 3 minutes on 2 cores")
    parser.add_argument("--patch", type=int, nargs=3, help="one patch size instead of the two")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spacing", type=float, nargs=3, default=(3.0, 0.8, 0.8), help="mm, slices first")
    parser.add_argument("--memory", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        side, patch, *others = arguments.memory
        print_peak_memory(side, tuple(patch), *others)
        return
    ratios = {}
    for patch in [tuple(arguments.patch)] if arguments.patch else PATCHES:
        batch, warm_up, rounds, sides = arguments.batch, 1, arguments.rounds, SIDES
        if arguments.quick:
            large = patch[0] * patch[1] * patch[2] >= LARGE
            batch, warm_up, rounds = (1, 0, 1) if large else (batch, 1, 1)
            sides = (SIDES[0], SIDES[2])
        case = (patch, batch, tuple(arguments.spacing))
        ratios["x".join(map(str, patch))] = compare(*case, warm_up, rounds, sides)
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
