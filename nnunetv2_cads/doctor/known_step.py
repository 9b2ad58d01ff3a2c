"""A training step of which every number is known: encoder maps, losses, gradients and what the optimizer makes of them.

    python -m nnunetv2_cads.doctor.known_step                       # makes known_step.json again
    torchrun ... -m nnunetv2_cads.doctor.known_step OUT DEVICE      # writes what the ranks of a run get

The numbers are those of plain CADS in float64 on a CPU, from weights and views of numpy's Philox generator, which are
the same on every machine. Of each tensor its length (Euclidean norm) is kept, and its products with some random
directions: their differences tell how far a whole tensor is off, however large it is.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.plain.step import PlainTrainer
from pretraining.system.devices import choose_device, start_processes
from pretraining.system.files import write_json
from pretraining.system.processes import SINGLE_PROCESS, Processes

FILE = Path(__file__).with_name("known_step.json")
BATCH, VIEW, XRAY = 2, (16, 32, 32), (32, 32)
DIRECTIONS = 4
NOTHING = 1e-6
"""Of the longest tensor of its kind."""
SETTINGS = {
    "batch_size": BATCH, "epochs": 2, "lr": 1e-3 * 256 / BATCH, "min_lr": 1e-3, "warmup_epochs": 0,
    "freeze_last_layer_epochs": 0, "clip_grad": 0.0, "adam_eps": 1e-3, "drop_path_rate": 0.0, "head_out_dim": 64,
    "head_hidden_dim": 64, "head_bottleneck_dim": 32,
}  # fmt: skip
"""The rate does not warm up, so that the first step moves weights; nothing is clipped, so that gradients are seen."""


class Numbers(NamedTuple):
    """What is kept of a step, by the name of the tensor: its length, then its products with `DIRECTIONS`.

    Attributes:
        maps: of the encoder's stages, for CT and X-rays.
        losses: of the stages; a number is its own length and product.
        gradients: of the student's weights.
        weights: what the optimizer has added to them.
    """

    maps: dict[str, list[float]]
    losses: dict[str, list[float]]
    gradients: dict[str, list[float]]
    weights: dict[str, list[float]]


def config(**changes: object) -> PretrainConfig:
    """The run that the step is of."""
    return PretrainConfig().replace(**SETTINGS | changes)


def generator(name: str) -> np.random.Generator:
    """Numbers that belong to a name, on every machine."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(key))


def set_weights(network: nn.Module) -> None:
    """Weights of a known size, by their names: matrices of N(0, 1 / inputs), vectors about what they begin with."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if not weight.requires_grad:
                continue
            drawn = torch.from_numpy(generator(name).normal(size=weight.shape))
            fan_in = weight[0].numel()
            known = drawn / fan_in**0.5 if weight.dim() > 1 else float(weight.mean() > 0.5) + 0.1 * drawn
            weight.copy_(known)


def views() -> list[Tensor]:
    """Two CT views (B, 1, D, H, W) and X-rays (B, 1, H, W), float64."""
    shapes = {"view_1": VIEW, "view_2": VIEW, "xray": XRAY}
    return [torch.from_numpy(generator(name).normal(0, 0.5, (BATCH, 1, *shape))) for name, shape in shapes.items()]


def known_numbers() -> Numbers:
    """As `known_step.json` has them."""
    return read_numbers(FILE)


def read_numbers(file: Path) -> Numbers:
    """As `main` has written them."""
    return Numbers(**json.loads(file.read_text(encoding="utf-8")))


def numbers_of_ours(
    device: torch.device, amp: str = "none", compiled: bool = False, processes: Processes = SINGLE_PROCESS
) -> Numbers:
    """The same of the method that users train with; each rank has its part of the batch."""
    trainer = Pretrainer(config(amp=amp, compile=compiled), 10, device, processes)
    set_weights(trainer.student)
    trainer.teacher.load_state_dict(trainer.student.state_dict(), strict=False)
    view_1, view_2, xray = (view.float() for view in views())
    with torch.no_grad(), trainer._autocast():
        maps = [trainer.student.backbone(image.to(device))[1:] for image in (view_1, xray)]  # plain has no stem's map
    before = _copies(trainer.student)
    own = slice(processes.rank, None, processes.world_size)
    losses = trainer.train_step(view_1[own], view_2[own], xray[own]).stage_losses
    return _numbers(maps, losses, trainer.student, before)


def numbers_of_plain() -> Numbers:
    """The same of plain CADS in float64 on the CPU."""
    trainer = PlainTrainer(config(), steps_per_epoch=10)
    for network in (trainer.student, trainer.teacher):
        network.double()
    trainer.center = trainer.center.double()
    set_weights(trainer.student)
    trainer.teacher.load_state_dict(trainer.student.state_dict(), strict=False)
    view_1, view_2, xray = views()
    with torch.no_grad():
        maps = [trainer.student.backbone(image) for image in (view_1, xray)]
    before = _copies(trainer.student)
    losses = torch.tensor(trainer.train_step(view_1, view_2, xray), dtype=torch.float64)
    return _numbers(maps, losses, trainer.student, before)


def _copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters()}


def _numbers(maps: Iterable[list[Tensor]], losses: Tensor, student: nn.Module, before: Mapping[str, Tensor]) -> Numbers:
    trained = {name: weight for name, weight in student.named_parameters() if weight.grad is not None}
    named_maps = {
        f"{kind} map {level}": tensor
        for kind, levels in zip(("CT", "X-ray"), maps, strict=True)
        for level, tensor in enumerate(levels)
    }
    return Numbers(
        _fingerprints(named_maps),
        {f"loss of stage {stage}": [float(loss)] * 2 for stage, loss in enumerate(losses, start=1)},
        _fingerprints({name: weight.grad for name, weight in trained.items()}),
        _fingerprints({name: weight.detach() - before[name] for name, weight in trained.items()}),
    )


def _fingerprints(tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    found = {}
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().double().numpy().ravel()
        directions = generator(f"directions of {name}").standard_normal((DIRECTIONS, values.size), dtype=np.float32)
        found[name] = [float(f"{number:.9g}") for number in (np.linalg.norm(values), *(directions @ values))]
    return found


def differences(found: Numbers, known: Numbers) -> dict[str, tuple[float, str]]:
    """How far off the worst tensor of each kind is, relative to its length, and its name.

    Tensors that are nothing but rounding (gradients of biases before a normalisation) are left out.
    """
    worst = {}
    for kind, tensors in known._asdict().items():
        largest = max(length for length, *_ in tensors.values())
        worst[kind] = max(
            (_difference(getattr(found, kind)[name], numbers), name)
            for name, numbers in tensors.items()
            if numbers[0] > NOTHING * largest
        )
    return worst


def _difference(found: list[float], known: list[float]) -> float:
    products = np.array(found[1:]) - np.array(known[1:])
    difference = float(np.sqrt(np.mean(products**2)) / known[0])
    return difference if np.isfinite(difference) else np.inf


def main(arguments: list[str]) -> int:
    """Write the numbers of plain CADS, or of a run's ranks."""
    if not arguments:
        write_json(FILE, numbers_of_plain()._asdict())
        return 0
    out, device = arguments
    with start_processes(device) as processes:
        numbers = numbers_of_ours(choose_device(device, processes), processes=processes)
        if processes.is_rank0:
            write_json(Path(out), numbers._asdict())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
