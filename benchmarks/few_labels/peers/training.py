"""What the peers share with CADS: its samples, optimiser and schedules, and its encoder file."""

import bisect
import copy
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pretraining.config import PretrainConfig
from pretraining.method.optimisation import clip_each_gradient, parameter_groups, set_rates
from pretraining.method.schedules import Rates, rates
from pretraining.run.checkpoint import encoder_record, save_encoder
from pretraining.store.store import Store
from pretraining.system.files import atomic_path
from pretraining.views.loader import ViewStream, make_loader, steps_per_epoch


class Peer(nn.Module):
    """A method, as `PeerTrainer` trains it.

    Attributes:
        encoder: what is kept in the end.
        phases: shares of the steps, one after the other; the schedules start anew with each.
        phase: number of the present one; the trainer sets it before each step.
    """

    encoder: nn.Module
    phases: tuple[float, ...] = (1.0,)
    phase: int = 0

    def loss(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        """Of two views (B, 1, D, H, W), ()."""
        raise NotImplementedError

    def after_step(self, momentum: float) -> None:
        """What follows the optimizer's step; nothing, where there is no teacher and no opponent."""

    def step_flops(self, view_1: Tensor, view_2: Tensor) -> float:
        """Of a training step on two views (B, 1, D, H, W), mean over the phases; backward taken as twice forward."""
        raise NotImplementedError


def pretrain_peer(method: Peer, store: Path, config: PretrainConfig, output: Path) -> Path:
    """Train a peer on the samples that CADS would see, with its optimiser, and write its ``cads_encoder.pth``.

    A run that was stopped resumes after its last finished epoch.

    Returns:
        The encoder file; ``output/cost.json`` has seconds per sample beside it.
    """
    output.mkdir(parents=True, exist_ok=True)
    encoder, checkpoint = output / "cads_encoder.pth", output / "checkpoint_latest.pth"
    if encoder.exists():
        return encoder
    stream = ViewStream(Store.open(store), config)
    trainer = PeerTrainer(method, config, steps_per_epoch(stream, config))
    if checkpoint.exists():
        trainer.load(torch.load(checkpoint, weights_only=True))
    started, first = time.perf_counter(), trainer.step
    loader = make_loader(stream, config, first, trainer.total_steps, torch.device("cpu"))
    with (output / "metrics.jsonl").open("a", encoding="utf-8") as log:
        for view_1, view_2, *_ in loader:
            loss = trainer.train_step(view_1, view_2)
            log.write(json.dumps({"step": trainer.step - 1, "loss": loss}) + "\n")
            if trainer.step % trainer.steps_per_epoch == 0:
                log.flush()
                with atomic_path(checkpoint) as temporary:
                    torch.save(trainer.state(), temporary)
    samples = (trainer.step - first) * config.optim.batch_size
    if samples:
        cost = {"seconds_per_sample": (time.perf_counter() - started) / samples}
        (output / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
    record = encoder_record(config, trainer.step, stream.store.spacing_mm)
    save_encoder(encoder, method.encoder.state_dict(), record)
    return encoder


class PeerTrainer:
    """Method, optimiser and place in the schedule.

    Args:
        method: what is trained.
        config: of the run.
        steps_per_epoch: steps that make an epoch.
    """

    def __init__(self, method: Peer, config: PretrainConfig, steps_per_epoch: int) -> None:
        self.method, self.config, self.steps_per_epoch, self.step = method.train(), config, steps_per_epoch, 0
        self.total_steps = config.optim.epochs * steps_per_epoch
        self.optimizer = torch.optim.AdamW(parameter_groups(method), lr=0.0, fused=True)

    def train_step(self, view_1: Tensor, view_2: Tensor) -> float:
        """One step on two views (B, 1, D, H, W) of each sample; returns the loss."""
        self.method.phase, now = phase_and_rates(self.config, self.step, self.steps_per_epoch, self.method.phases)
        set_rates(self.optimizer, now)
        torch.manual_seed(self.config.run.seed * 1_000_003 + self.step)  # masks and stochastic depth follow it
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.run.amp == "bf16"):
            loss = self.method.loss(view_1, view_2)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_each_gradient(self.method.parameters(), self.config.optim.clip_grad)
        self.optimizer.step()
        self.method.after_step(now.teacher_momentum)
        self.step += 1
        return loss.item()

    def state(self) -> dict:
        """Everything needed to resume."""
        return {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}

    def load(self, state: dict) -> None:
        """Resume from `state`."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def phase_starts(shares: Sequence[float], total_steps: int) -> list[int]:
    """The first step of each phase of a run."""
    return [round(share * total_steps) for share in itertools.accumulate(shares[:-1], initial=0.0)]


def phase_and_rates(
    config: PretrainConfig, step: int, steps_per_epoch: int, shares: Sequence[float]
) -> tuple[int, Rates]:
    """The phase of a step, from 0, and its scheduled quantities.

    Each phase has the schedules of a run of its length, but the warm-up is the first one's alone: the optimizer keeps
    its moments.
    """
    total_steps = config.optim.epochs * steps_per_epoch
    starts = phase_starts(shares, total_steps)
    phase = bisect.bisect(starts, step) - 1
    length = [*starts[1:], total_steps][phase] - starts[phase]
    warmup = 0 if phase else min(config.optim.warmup_epochs * steps_per_epoch, length)
    return phase, rates(config.replace(epochs=length, warmup_epochs=warmup), step - starts[phase], 1)


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy that takes no gradient."""
    return copy.deepcopy(module).requires_grad_(False)
