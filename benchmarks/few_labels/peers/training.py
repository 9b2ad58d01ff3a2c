"""What the peers share with CADS: its samples, optimiser and schedules, and its encoder file.

A method is a module with ``encoder``, which is kept in the end; ``loss(view_1, view_2)`` of two views (B, 1, D, H, W);
``after_step(momentum)``, which follows the optimizer's step; and ``step_over_forward``, FLOPs of a step over those of
its forward pass.
"""

import copy
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from pretraining.config import PretrainConfig
from pretraining.method.optimisation import clip_each_gradient, parameter_groups, set_rates
from pretraining.method.schedules import rates
from pretraining.run.checkpoint import encoder_record, save_encoder
from pretraining.store.store import Store
from pretraining.system.files import atomic_path
from pretraining.views.loader import ViewStream, make_loader, steps_per_epoch


def pretrain_peer(method: nn.Module, store: Path, config: PretrainConfig, output: Path) -> Path:
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

    def __init__(self, method: nn.Module, config: PretrainConfig, steps_per_epoch: int) -> None:
        self.method, self.config, self.steps_per_epoch, self.step = method.train(), config, steps_per_epoch, 0
        self.total_steps = config.optim.epochs * steps_per_epoch
        self.optimizer = torch.optim.AdamW(parameter_groups(method), lr=0.0, fused=True)

    def train_step(self, view_1: Tensor, view_2: Tensor) -> float:
        """One step on two views (B, 1, D, H, W) of each sample; returns the loss."""
        now = rates(self.config, self.step, self.steps_per_epoch)
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


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy that takes no gradient."""
    return copy.deepcopy(module).requires_grad_(False)
