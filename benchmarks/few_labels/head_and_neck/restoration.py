"""Pre-training by restoring blanked blocks of a scan, in the window of soft tissue.

Paper: masked image modelling for pyramids of convolutions, Xie et al., SimMIM, CVPR 2022.
Source: written for this benchmark. The network is PVT-UNet, of which the encoder is handed on.
Deviations: the target is HU in a window, not the whole range, so that differences between organs count beside air and
bone. After a warm-up the rate is constant and falls to 0 over the last fifth: a snapshot of the constant part can be
gone on from to any length (`pretrain`'s ``go_on_from``).

All randomness follows from the seed and the number of the step, so a run that was stopped goes on exactly.
"""

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from few_labels.head_and_neck.data import SPACING_MM
from nnunetv2_cads.encoder_file.record import INTENSITY_SCALE_HU, PRETRAINING
from nnunetv2_cads.network_architecture import PVTUNet
from pretraining.run.checkpoint import save_encoder
from pretraining.system.files import atomic_path, remove_leftovers, write_json

CHECKPOINT, METRICS = "checkpoint_latest.pth", "metrics.jsonl"
CHECKPOINT_SECONDS = 600.0
LOG_STEPS = 25
BLANK_HU = 0.0
AIR_HU = -1024
"""Beyond the edges of a scan that is smaller than a crop."""


@dataclass(frozen=True)
class RestorationConfig:
    """Settings of a run.

    Attributes:
        crops: length of the run, in crops.
        batch_size: crops in a step.
        crop_size: voxels (D, H, W).
        block: voxels (D, H, W) that are blanked together.
        ratio: share of a crop's blocks that are blanked.
        window_hu: range that the target is clipped to.
        unit_hu: HU that count as an error of 1, where the loss turns from squared to linear.
        lr: highest rate.
        warmup_steps: over which the rate rises.
        decay_share: of the steps, at the end, over which it falls to 0.
        weight_decay: AdamW's.
        max_norm: of the gradient.
        snapshots: numbers of crops after which encoder and state are kept.
        seed: of weights, crops and blanks.
    """

    crops: int = 100_000
    batch_size: int = 4
    crop_size: tuple[int, int, int] = (24, 48, 48)
    block: tuple[int, int, int] = (4, 8, 8)
    ratio: float = 0.6
    window_hu: tuple[float, float] = (-256.0, 358.4)
    unit_hu: float = 102.4
    lr: float = 1e-3
    warmup_steps: int = 100
    decay_share: float = 0.2
    weight_decay: float = 0.04
    max_norm: float = 1.0
    snapshots: tuple[int, ...] = (2_000, 10_000, 25_000, 50_000, 100_000)
    seed: int = 0

    @property
    def steps(self) -> int:
        """Length of the run, in steps."""
        return self.crops // self.batch_size

    @property
    def kept_steps(self) -> set[int]:
        """Numbers of steps after which a snapshot is written; the end is one, too."""
        return {crops // self.batch_size for crops in self.snapshots} | {self.steps}


def learning_rate(config: RestorationConfig, step: int) -> float:
    """Of a step: linear warm-up, constant, then linear to (nearly) 0."""
    decay_steps = max(round(config.decay_share * config.steps), 1)
    return config.lr * min((step + 1) / config.warmup_steps, (config.steps - step) / decay_steps, 1.0)


class Restoration:
    """Network, optimiser and place in the schedule.

    Args:
        volumes: int16 HU, (D, H, W) each.
        config: of the run.
    """

    def __init__(self, volumes: Sequence[np.ndarray], config: RestorationConfig) -> None:
        torch.manual_seed(config.seed)
        self.volumes, self.config, self.step = volumes, config, 0
        self.network = PVTUNet(1, 1, nn.Conv3d, deep_supervision=False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=0.0, weight_decay=config.weight_decay, fused=True
        )

    def train_step(self) -> float:
        """One step; returns the loss before it."""
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + self.step)  # blanks and stochastic depth follow it
        hu = draw_crops(self.volumes, config, np.random.default_rng((config.seed, self.step)))
        blanked = draw_blocks(config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step)
        with torch.autocast("cpu", torch.bfloat16):
            restored = self.network(torch.where(blanked, BLANK_HU, hu) / INTENSITY_SCALE_HU)
        loss = restoration_loss(restored.float(), hu, blanked, config)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), config.max_norm, error_if_nonfinite=True)
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "config": asdict(self.config),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`, of a run that may have another length but is alike in all else.

        Raises:
            ValueError: it is not alike.
        """
        ours = asdict(self.config)
        for name in ours.keys() - {"crops", "snapshots"}:
            if ours[name] != state["config"][name]:
                raise ValueError(f"the run to go on from has {name} = {state['config'][name]}, this one {ours[name]}")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def draw_crops(volumes: Sequence[np.ndarray], config: RestorationConfig, rng: np.random.Generator) -> Tensor:
    """A batch of random crops of random scans, (B, 1, D, H, W) float32 HU."""
    crops = np.full((config.batch_size, 1, *config.crop_size), AIR_HU, dtype=np.float32)
    for crop in crops[:, 0]:
        volume = volumes[rng.integers(len(volumes))]
        starts = [rng.integers(max(n - edge, 0) + 1) for n, edge in zip(volume.shape, config.crop_size, strict=True)]
        box = tuple(slice(start, start + edge) for start, edge in zip(starts, config.crop_size, strict=True))
        part = volume[box]
        crop[tuple(slice(n) for n in part.shape)] = part
    return torch.from_numpy(crops)


def draw_blocks(config: RestorationConfig) -> Tensor:
    """Which voxels (B, 1, D, H, W) to blank: the same number of blocks in each crop."""
    grid = [-(-edge // block) for edge, block in zip(config.crop_size, config.block, strict=True)]
    blocks = grid[0] * grid[1] * grid[2]
    order = torch.rand(config.batch_size, blocks).argsort(1).argsort(1)
    blanked = (order < round(config.ratio * blocks)).view(config.batch_size, 1, *grid)
    for axis, (block, edge) in enumerate(zip(config.block, config.crop_size, strict=True), start=2):
        blanked = blanked.repeat_interleave(block, axis).narrow(axis, 0, edge)
    return blanked


def restoration_loss(restored: Tensor, hu: Tensor, blanked: Tensor, config: RestorationConfig) -> Tensor:
    """Smooth L1 on the blanked voxels, in units of ``unit_hu`` within the window; ()."""
    target = hu.clamp(*config.window_hu) / config.unit_hu
    return F.smooth_l1_loss(restored[blanked], target[blanked])


def pretrain(
    volumes: Sequence[np.ndarray],
    run: Path,
    config: RestorationConfig,
    deadline: float,
    go_on_from: Path | None = None,
) -> bool:
    """Train, or go on, until the end or ``deadline`` (monotonic seconds).

    Args:
        volumes: int16 HU, (D, H, W) each.
        run: folder of the checkpoint, the snapshots and `METRICS`.
        config: of the run.
        deadline: after which it stops, with a checkpoint.
        go_on_from: a snapshot to begin with, where the run has no checkpoint yet.

    Returns:
        Whether it is at its end.
    """
    run.mkdir(parents=True, exist_ok=True)
    remove_leftovers(run)
    write_json(run / "config.json", asdict(config))
    trainer = Restoration(volumes, config)
    begin = run / CHECKPOINT if (run / CHECKPOINT).exists() else go_on_from
    if begin:
        trainer.load(torch.load(begin, weights_only=True))
    keep_metrics_before(run / METRICS, trainer.step)
    losses, saved, lap = [], time.monotonic(), time.monotonic()
    while trainer.step < config.steps and not is_over(deadline):
        losses.append(trainer.train_step())
        if trainer.step % LOG_STEPS == 0:
            rate = len(losses) * config.batch_size / (time.monotonic() - lap)
            line = {"crops": trainer.step * config.batch_size, "loss": float(np.mean(losses)), "crops_per_second": rate}
            with (run / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": trainer.step, **line}) + "\n")
            losses, lap = [], time.monotonic()
        if trainer.step in config.kept_steps:
            write_snapshot(trainer, run)
        if time.monotonic() - saved > CHECKPOINT_SECONDS and trainer.step % LOG_STEPS == 0:
            save(trainer.state(), run / CHECKPOINT)
            saved = time.monotonic()
    save(trainer.state(), run / CHECKPOINT)
    return trainer.step == config.steps


def is_over(deadline: float) -> bool:
    """Whether the time (monotonic seconds) is up."""
    return time.monotonic() > deadline


def write_snapshot(trainer: Restoration, run: Path) -> None:
    """Keep the encoder, as fine-tuning reads it, and the whole state."""
    crops = trainer.step * trainer.config.batch_size
    save(trainer.state(), run / f"snapshot_{crops:06d}.pth")
    record = dataclasses.replace(PRETRAINING, spacing_mm=(SPACING_MM,) * 3).with_notes(
        crop_size=list(trainer.config.crop_size),
        steps=trainer.step,
        batch_size=trainer.config.batch_size,
        method="restoration",
    )
    save_encoder(run / f"encoder_{crops:06d}.pth", trainer.network.encoder.state_dict(), record)


def save(state: dict[str, Any], path: Path) -> None:
    """Write a state; the previous file stays until this one is complete."""
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def keep_metrics_before(path: Path, step: int) -> None:
    """Take out the lines after ``step``: those steps are done again."""
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
    kept = []
    for line in lines:
        try:
            of_step = json.loads(line)["step"]
        except ValueError:  # a line that was being written when the run was killed
            continue
        if of_step <= step:
            kept.append(line + "\n")
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
