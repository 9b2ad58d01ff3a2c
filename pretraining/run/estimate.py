"""What a run will cost, before it begins: `cads_pretrain --estimate`, and whether the machine's memory suffices."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.method.student_teacher import Shown, Student, Teacher
from pretraining.system.errors import UserError
from pretraining.system.machine import available_memory, peak_memory, reset_peak_memory
from pretraining.system.processes import SINGLE_PROCESS, Processes
from pretraining.views.corrupted_crops import Crop, crop_xray_size
from pretraining.views.loader import Sample
from pretraining.views.point_pairs import PointPair

TIMED_STEPS = 5
STEPS_BEFORE = 2
BYTES_PER_VOXEL = 1000
"""Of a step on the CPU in float32, for each voxel that the student sees (docs/benchmarks.md: 1.26 GiB at batch 16)."""


@dataclass(frozen=True)
class Estimate:
    """Cost of a run.

    Attributes:
        parameters: trained ones.
        flops_per_step: multiplications and additions of one step, over all ranks.
        step_seconds: median of some steps, without waiting for views.
        memory_bytes: peak of one rank (on a GPU: of its memory).
        total_steps: steps of the run.
        world_size: ranks of the run.
    """

    parameters: int
    flops_per_step: float
    step_seconds: float
    memory_bytes: int
    total_steps: int
    world_size: int = 1

    def __str__(self) -> str:
        seconds = self.total_steps * self.step_seconds
        each = " in each process" if self.world_size > 1 else ""
        speed = self.flops_per_step / self.step_seconds
        return (
            f"{self.parameters / 1e6:.1f} M trained parameters\n"
            f"{self.flops_per_step / 1e9:.0f} GFLOP per step, {speed / 1e9:.0f} GFLOP/s\n"
            f"{self.memory_bytes / 2**30:.1f} GiB at the peak{each}, without the processes that prepare views\n"
            f"{self.step_seconds:.2f} s per step, {self.total_steps} steps: {duration(seconds)}"
        )


def check_memory(config: PretrainConfig, processes: Processes = SINGLE_PROCESS) -> None:
    """Raise `UserError` where a step on the CPU needs more memory than there is.

    Linux does not refuse memory that it lacks; it kills some process, without a message, once that memory is used.
    """
    with torch.device("meta"):
        student = Student(config)
        teacher = Teacher(student)
    trained, other = (sum(p.numel() for p in network.parameters()) for network in (student, teacher))
    samples = -(-config.optim.batch_size // (processes.world_size * config.run.accumulate))  # of a part
    voxels = sum(math.prod(shape) for shape in input_shapes(config, samples))
    each = 4 * (4 * trained + other) + BYTES_PER_VOXEL * voxels  # weights, gradients, AdamW's moments; the teacher's
    needed, available = each * processes.local_world_size, available_memory()
    if needed > available:
        smaller = "demo, or cads for CADS" if config.distils else "demo"
        raise UserError(
            f"a step of batch_size {config.optim.batch_size} on the CPU needs about {needed / 2**30:.0f} GiB of memory "
            f"and {available / 2**30:.0f} are available; give a lower --batch-size, a smaller --preset ({smaller}), or "
            "--accumulate N, which takes a batch in N parts"
        )


def input_shapes(config: PretrainConfig, count: int) -> list[tuple[int, ...]]:
    """Shapes of what the student sees of ``count`` samples: CT views, X-rays, crops, their X-rays, pairs of crops."""
    depth, height, width = config.view.crop_size
    half = 2 if config.view.uniform_sampling else 1
    views = [(count, 1, depth, height // half, width // half)] * 2 + [(count, 1, height, width)]
    crop = (count, 1, *config.restoration.restored_crop_size)
    crop_xray = (count, 1, *crop_xray_size(config))
    pair = [(count, 1, *config.point.point_crop_size)] * 2
    crops = [crop] * config.restores + [crop_xray] * (config.place.ray_weight > 0)
    return views * config.distils + crops + pair * config.has_points


def random_sample(config: PretrainConfig, count: int) -> Sample:
    """A batch of ``count`` samples of noise."""
    inputs = iter([torch.randn(shape) for shape in input_shapes(config, count)])
    views = [next(inputs) if config.distils else None for _ in range(3)]
    crop = pair = None
    if config.restores:
        truth = next(inputs)
        xray = next(inputs) if config.place.ray_weight else None
        crop = Crop(truth, truth, torch.ones_like(truth, dtype=torch.bool), xray)
    if config.has_points:
        size = torch.tensor(config.point.point_crop_size)
        points = (torch.rand(count, config.point.point_count, 3) * (size - 1) for _ in range(2))
        pair = PointPair(next(inputs), next(inputs), *points)
    return Sample(*views, crop, pair)


def flops_per_step(pretrainer: Pretrainer) -> float:
    """Multiplications and additions of a step over all ranks: forward counted, backward taken as twice of it."""
    return _step_cost(pretrainer, forward_flops)


def predicted_seconds(pretrainer: Pretrainer) -> float:
    """About what the steps that are left take on the CPU, from forward passes of one sample; the run stays as it is."""
    networks = (pretrainer.student, pretrainer.teacher)
    modes = {module: module.training for network in networks for module in network.modules()}
    amp = pretrainer.config.run.amp
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp, torch.float32)
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", dtype, enabled=amp != "none"):
        for network in networks:
            network.eval()  # running statistics stay as they are
        try:
            seconds = _step_cost(pretrainer, forward_seconds)
        finally:
            for module, training in modes.items():
                module.training = training
    return (pretrainer.total_steps - pretrainer.step) * seconds


def _step_cost(pretrainer: Pretrainer, cost: Callable[..., float]) -> float:
    """What a step over all ranks costs: ``cost(function, *inputs)`` of forward passes, and twice that of backward."""
    config, total = pretrainer.config, 0.0
    inputs = iter([torch.randn(shape, device=pretrainer.device) for shape in input_shapes(config, 1)])
    if config.distils:
        ct, xray = Shown(torch.cat([next(inputs), next(inputs)])), Shown(next(inputs))
        total += cost(pretrainer.teacher, ct) + 3 * cost(pretrainer.student, ct, xray)
    if config.restores:
        crop, xray = next(inputs), next(inputs) if config.place.ray_weight else None
        of_places = cost(pretrainer.teacher.backbone, crop) if config.has_places else 0
        of_xray = 0 if xray is None else cost(pretrainer.student.backbone, xray)
        total += of_places + 3 * (cost(pretrainer.student.restore, crop) + of_xray)
    if config.has_points:
        total += 3 * cost(pretrainer.student.point_maps, torch.cat([next(inputs), next(inputs)]))
    return config.optim.batch_size * total


def forward_seconds(function: Callable[..., Any], *inputs: torch.Tensor) -> float:
    """Seconds of ``function(*inputs)`` on the CPU, the second time."""
    with torch.no_grad():
        function(*inputs)
        start = time.perf_counter()
        function(*inputs)
        return time.perf_counter() - start


def duration(seconds: float) -> str:
    """In hours, or in minutes or seconds where it is less than one."""
    if seconds >= 60:
        return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    return f"{math.ceil(seconds)} seconds"


def forward_flops(function: Callable[..., Any], *inputs: torch.Tensor) -> int:
    """Multiplications and additions of ``function(*inputs)``, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode  # loads triton, for a quarter of a second

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*inputs)
    return counter.get_total_flops()


def estimate(
    config: PretrainConfig, steps_per_epoch: int, device: torch.device, processes: Processes = SINGLE_PROCESS
) -> Estimate:
    """Take a few steps on noise and extrapolate."""
    pretrainer = Pretrainer(config, steps_per_epoch, device, processes)
    sample = random_sample(config, config.optim.batch_size // processes.world_size)
    reset_peak_memory(device)
    seconds = []
    for _ in range(STEPS_BEFORE + TIMED_STEPS):
        start = time.perf_counter()
        loss = pretrainer.train_step(*sample).loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss of noise is {loss}")
    memory = peak_memory(device)
    return Estimate(
        sum(p.numel() for p in pretrainer.student.parameters() if p.requires_grad),
        flops_per_step(pretrainer),
        statistics.median(seconds[STEPS_BEFORE:]),
        memory,
        pretrainer.total_steps,
        processes.world_size,
    )
