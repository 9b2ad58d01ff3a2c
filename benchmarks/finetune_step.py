"""Fine-tuning and inference: PVT-UNet beside nnU-Net's PlainConvUNet and ResEnc-M, alternating in one process.

    python benchmarks/finetune_step.py [--quick] [--patch 32 96 96] [--batch 2] [--spacing 3 0.8 0.8]
                                       [--networks PlainConvUNet CoTr]

nnU-Net's networks are those that its planner (2.8.1) gives a patch at ``--spacing``; slices thicker than pixels are
what makes it plan flat patches. A training step is nnU-Net's: deep supervision, Dice and cross-entropy on every
resolution but the coarsest, clipping, and each side's own optimizer (SGD with momentum; AdamW for PVT-UNet). Inference
is a forward pass without deep supervision. Both in float32 on the CPU, with malloc as PyTorch finds it.

Seconds are medians; a ratio of times is the median of the ratios within a round, since whatever else a machine does
slows neighbours alike. Memory is the peak of a process of its own above its imports, and FLOPs are PyTorch's count.
``--quick`` takes the first and the last network alone, one step instead of several, and one patch of 32 x 160 x 160
instead of two of 48 x 192 x 192.

The last line is a JSON object: per patch, the last network's `flops`, `train`, `infer` and `memory` over the first's.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from finetune_memory import loss_function
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from tables import EXACT_MALLOC, in_new_process, markdown_table, print_json
from torch import nn

from nnunetv2_cads.network_architecture import CoTr, PVTUNet
from nnunetv2_cads.training.parameter_groups import parameter_groups
from pretraining.run.estimate import forward_flops
from pretraining.system.machine import peak_memory, reset_peak_memory, resident_memory

SIDES = ("PlainConvUNet", "ResEnc-M", "PVT-UNet")
NETWORKS = (*SIDES, "CoTr")
PATCHES, QUICK_PATCHES = ((32, 96, 96), (48, 192, 192)), ((32, 96, 96), (32, 160, 160))
LARGE = 500_000  # voxels from which --quick takes one patch per step
CLASSES = 14
RESENC_BLOCKS = (1, 3, 4, 6, 6, 6, 6)
CPU = torch.device("cpu")


def build(side: str, patch: tuple[int, ...], spacing: tuple[float, ...]) -> nn.Module:
    """The network that is planned for a patch."""
    if side == "PVT-UNet":
        return PVTUNet(1, CLASSES)
    if side == "CoTr":
        return CoTr(1, CLASSES)
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


def peaks_of(side: str, patch: tuple[int, ...], batch: int, spacing: tuple[float, ...]) -> tuple[int, int]:
    """Peak memory of a training step and of inference, above the imports; the optimizer's state exists before."""
    imported = resident_memory()
    job = Job(side, patch, batch, spacing)
    for parameter in job.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    job.optimizer.step()
    peaks = []
    for action in (job.train, job.infer):
        job.optimizer.zero_grad(set_to_none=True)
        reset_peak_memory(CPU)
        action()
        peaks.append(peak_memory(CPU) - imported)
    return peaks[0], peaks[1]


def peak_memory_of(sides: tuple[str, ...], case: tuple, at_once: bool) -> dict[str, tuple[int, int]]:
    """`peaks_of` each side."""
    started = {}
    for side in sides:
        started[side] = in_new_process(peaks_of, side, *case, environment=EXACT_MALLOC)
        if not at_once:
            started[side].result()
    return {side: future.result() for side, future in started.items()}


def seconds(action: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(
    patch: tuple[int, ...], batch: int, spacing: tuple[float, ...], warm_up: int, rounds: int, sides: tuple[str, ...]
) -> dict[str, float]:
    """Measure all sides on one patch, print the table, return the last one's ratios to the first."""
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

    ratios, rows = {}, []
    for side in sides:
        ratios[side] = {
            "flops": flops[side] / flops[plain],
            "train": relative(train, side),
            "infer": relative(infer, side),
            "memory": memory[side][0] / memory[plain][0],
        }
        training, inference = (statistics.median(times[side]) for times in (train, infer))
        values = (flops[side] / 1e12, training, inference, memory[side][0] / 2**30)
        cells = [f"{value:.2f} ({ratio:.2f})" for value, ratio in zip(values, ratios[side].values(), strict=True)]
        rows.append([side, *cells, f"{memory[side][1] / 2**30:.2f}"])
    size = " x ".join(map(str, patch))
    print(f"\npatch {size}, batch {batch}, {rounds} rounds, {torch.get_num_threads()} threads; in brackets / {plain}")
    heads = ["network", "forward, TFLOP", "training step, s", "inference, s", "peak of training, GiB"]
    print(markdown_table([*heads, "of inference, GiB"], rows), flush=True)
    return {name: round(value, 3) for name, value in ratios[sides[-1]].items()}


def main() -> None:
    """Compare on each patch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under 3 minutes on 2 cores")
    parser.add_argument("--patch", type=int, nargs=3, help="one patch size instead of the two")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=SIDES, help="compared with the first")
    parser.add_argument("--spacing", type=float, nargs=3, default=(3.0, 0.8, 0.8), help="mm, slices first")
    arguments = parser.parse_args()
    ratios = {}
    for patch in [tuple(arguments.patch)] if arguments.patch else QUICK_PATCHES if arguments.quick else PATCHES:
        batch, warm_up, rounds, sides = arguments.batch, 1, arguments.rounds, tuple(arguments.networks)
        if arguments.quick:
            large = patch[0] * patch[1] * patch[2] >= LARGE
            batch, warm_up, rounds = (1, 0, 1) if large else (batch, 1, 1)
            sides = (sides[0], sides[-1])
        case = (patch, batch, tuple(arguments.spacing))
        ratios["x".join(map(str, patch))] = compare(*case, warm_up, rounds, sides)
    print_json(ratios)


if __name__ == "__main__":
    main()
