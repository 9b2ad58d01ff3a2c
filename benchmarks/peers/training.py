"""What the peers share with CADS: its samples, optimiser and schedules, and its encoder file."""

import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from pretraining.checkpoint import encoder_record, save_encoder
from pretraining.config import PretrainConfig
from pretraining.data.loader import ViewStream, make_loader, steps_per_epoch
from pretraining.data.store import Store
from pretraining.files import atomic_path
from pretraining.optimisation import clip_each_gradient, parameter_groups
from pretraining.schedules import cosine, warmup_cosine


class Method(Protocol):
    """A self-supervised method: a module with an encoder.

    Attributes:
        encoder: what is handed on in the end.
        step_over_forward: FLOPs of a step over those of its forward pass.
    """

    encoder: nn.Module
    step_over_forward: float

    def loss(self, view_1: Tensor, view_2: Tensor) -> Tensor:
        """Of two views (B, 1, D, H, W) of each sample, ()."""

    def after_step(self, momentum: float) -> None:
        """What follows the optimiser's step, such as moving a teacher; ``momentum`` is CADS's of this step."""


def pretrain_peer(method: nn.Module, store: Path, config: PretrainConfig, output: Path) -> Path:
    """Train a peer on the samples that CADS would see, with its optimiser, and write its ``cads_encoder.pth``.

    A run that was stopped goes on after the last epoch that was finished.

    Returns:
        The encoder file; ``output/cost.json`` has seconds per sample beside it.
    """
    output.mkdir(parents=True, exist_ok=True)
    encoder, checkpoint = output / "cads_encoder.pth", output / "checkpoint_latest.pth"
    if encoder.exists():
        return encoder
    run = _Run(method, config, ViewStream(Store.open(store), config))
    if checkpoint.exists():
        run.load(torch.load(checkpoint, weights_only=True))
    started, first = time.perf_counter(), run.step
    with (output / "metrics.jsonl").open("a", encoding="utf-8") as log:
        for loss in run.steps():
            log.write(json.dumps({"step": run.step - 1, "loss": loss}) + "\n")
            if run.step % run.steps_per_epoch == 0:
                log.flush()
                with atomic_path(checkpoint) as temporary:
                    torch.save(run.state(), temporary)
    samples = (run.step - first) * config.optim.batch_size
    if samples:
        cost = {"seconds_per_sample": (time.perf_counter() - started) / samples}
        (output / "cost.json").write_text(json.dumps(cost), encoding="utf-8")
    save_encoder(encoder, method.encoder.state_dict(), encoder_record(config, run.step))
    return encoder


class _Run:
    """Method, optimiser and place in the schedule."""

    def __init__(self, method: nn.Module, config: PretrainConfig, stream: ViewStream) -> None:
        self.method, self.config, self.stream, self.step = method, config, stream, 0
        self.steps_per_epoch = steps_per_epoch(stream, config)
        self.total = config.optim.epochs * self.steps_per_epoch
        self.optimizer = torch.optim.AdamW(parameter_groups(method), lr=0.0, fused=True)

    def steps(self) -> Iterator[float]:
        """Take step after step; yields the losses."""
        optim, device = self.config.optim, torch.device("cpu")
        warmup = optim.warmup_epochs * self.steps_per_epoch
        self.method.train()
        for view_1, view_2, _ in make_loader(self.stream, self.config, self.step, self.total, device):
            for group in self.optimizer.param_groups:
                group["lr"] = warmup_cosine(self.config.peak_lr, optim.min_lr, warmup, self.total, self.step)
                group["weight_decay"] = cosine(*optim.weight_decay, self.total, self.step) if group["decayed"] else 0.0
            torch.manual_seed(self.config.run.seed * 1_000_003 + self.step)  # masks and stochastic depth follow it
            with torch.autocast("cpu", torch.bfloat16, enabled=self.config.run.amp == "bf16"):
                loss = self.method.loss(view_1, view_2)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            clip_each_gradient(self.method.parameters(), optim.clip_grad)
            self.optimizer.step()
            self.method.after_step(cosine(*optim.teacher_momentum, self.total, self.step))
            self.step += 1
            yield loss.item()

    def state(self) -> dict:
        """Everything needed to go on."""
        return {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}

    def load(self, state: dict) -> None:
        """Go on from `state`."""
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy that takes no gradient."""
    return copy.deepcopy(module).requires_grad_(False)
