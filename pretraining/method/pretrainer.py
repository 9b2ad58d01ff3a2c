"""The state of a pre-training run and its one operation, the training step.

Paper: CADS (IEEE TMI 2025); CADS method, sections 4 and 5. Checked step by step against the published code.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_cads.network_architecture.pvt_v2 import BRANCHES
from pretraining.config import PretrainConfig
from pretraining.method.diagnostics import StepResult, entropy_and_agreement, spread_and_rank, step_is_finite
from pretraining.method.loss import deep_distillation_loss, update_center, weighted_mean
from pretraining.method.optimisation import GROUP_SETTINGS, clip_each_gradient, parameter_groups
from pretraining.method.schedules import Rates, cosine, linspace, warmup_cosine
from pretraining.method.student_teacher import Student, Teacher
from pretraining.system.processes import ALONE, Processes

_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")  # since torch 2.13, and before
    if name in inspect.signature(DistributedDataParallel).parameters
)
_AUTOCAST_DTYPE = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Pretrainer:
    """Student, teacher, center and optimizer of a run. All processes of a run hold the same.

    Args:
        config: the run's configuration.
        steps_per_epoch: steps that make an epoch.
        device: where to compute.
        processes: this process and the others of the run.
    """

    def __init__(
        self, config: PretrainConfig, steps_per_epoch: int, device: torch.device, processes: Processes = ALONE
    ) -> None:
        self.config, self.steps_per_epoch, self.device, self.processes = config, steps_per_epoch, device, processes
        self.step = 0
        torch.manual_seed(config.run.seed)
        self.student = Student(config.model).to(device)
        self.teacher = Teacher(self.student).to(device)
        # train mode for both: the published teacher keeps its stochastic depth
        self.student.train()
        self.teacher.train()
        self.center = torch.zeros(config.model.head_out_dim, device=device)
        groups, optim = parameter_groups(self.student), config.optim
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=optim.adam_betas, eps=optim.adam_eps, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.run.amp == "fp16")
        self._student, self._teacher = self.student, self.teacher
        if processes.size > 1:
            without_buffers = {_SYNC_BUFFERS: False}  # all processes compute the same ones
            self._student = DistributedDataParallel(self.student, gradient_as_bucket_view=True, **without_buffers)
        self._without_averaging = getattr(self._student, "no_sync", nullcontext)
        if config.run.compile:
            self._student, self._teacher = torch.compile(self._student), torch.compile(self._teacher)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.optim.epochs * self.steps_per_epoch

    @property
    def epoch(self) -> int:
        """Epoch of the next step, from 0."""
        return self.step // self.steps_per_epoch

    def rates(self) -> Rates:
        """The scheduled quantities of the next step."""
        optim, loss, epoch = self.config.optim, self.config.loss, self.epoch
        warmup_steps = optim.warmup_epochs * self.steps_per_epoch
        return Rates(
            lr=warmup_cosine(self.config.peak_lr, optim.min_lr, warmup_steps, self.total_steps, self.step),
            weight_decay=cosine(*optim.weight_decay, self.total_steps, self.step),
            teacher_momentum=cosine(*optim.teacher_momentum, self.total_steps, self.step),
            teacher_temp=linspace(*loss.teacher_temp, loss.warmup_teacher_temp_epochs, epoch),
            last_layers_frozen=epoch < optim.freeze_last_layer_epochs,
        )

    def train_step(self, view_1: Tensor, view_2: Tensor, xray: Tensor) -> StepResult:
        """One step on this process's share of the batch.

        Nothing of the state changes before all processes have finished their part, so a step in which one of them
        fails has not happened. A step whose loss or gradients are not finite changes nothing but the step's number;
        that is decided on the device, so no GPU is waited for.

        Args:
            view_1: first CT view (B, 1, D, H, W).
            view_2: second CT view, same shape.
            xray: radiographs (B, 1, H, W).
        """
        rates = self.rates()
        for group in self.optimizer.param_groups:
            group["lr"] = rates.lr
            group["weight_decay"] = rates.weight_decay if group["decayed"] else 0.0
        self.optimizer.zero_grad(set_to_none=True)
        with self._buffers_kept_on_error() as buffers:
            parts, views = self.config.run.accumulate, 2 * len(view_1) * self.processes.size
            samples = [values.chunk(parts) for values in (view_1, view_2, xray, self._noise(len(view_1)))]
            statistics, features = [], []
            for i, part in enumerate(zip(*samples, strict=True)):
                with nullcontext() if i == parts - 1 else self._without_averaging():
                    part_statistics, part_features = self._forward_backward(*part, rates.teacher_temp)
                statistics.append(part_statistics)
                features.append(part_features)
            sums = self.processes.sum_(torch.stack(statistics).sum(0) if parts > 1 else statistics[0])
            outputs, width = len(self.center), features[0].shape[1]
            sums, feature_sum = sums.split([len(sums) - width, width])
            centred = torch.cat(features) - feature_sum / views  # first, since almost collapsed features hardly differ
            covariance = self.processes.sum_(centred.T @ centred) / views
        norms, finite = self._update_student(rates, sums)
        self.teacher.update(self.student, (1.0 - rates.teacher_momentum) * finite)
        for buffer, before in buffers:  # running statistics of batch normalisation
            buffer.copy_(torch.where(finite, buffer, before))
        logits, probabilities, rest = sums.split([outputs, outputs, len(sums) - 2 * outputs])
        center = update_center(self.center, logits / views, self.config.loss.center_momentum)
        self.center = torch.where(finite, center, self.center)
        self.step += 1
        levels = rest[2:] / (parts * self.processes.size)
        entropy, agreement = rest[0] / views, 2 * rest[1] / views
        information = torch.special.entr(probabilities / views).sum() - entropy
        health = entropy, information, agreement, *spread_and_rank(feature_sum / views, covariance)
        loss = weighted_mean(levels, self.config.loss.stage_weights)
        return StepResult(loss, levels, norms, finite, *health, rates)

    @contextmanager
    def _buffers_kept_on_error(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """The running statistics, which forward passes change at once, each with a copy; an error brings them back."""
        buffers = [(buffer, buffer.clone()) for net in (self.student, self.teacher) for buffer in net.buffers()]
        try:
            yield buffers
        except RuntimeError:
            for buffer, before in buffers:
                buffer.copy_(before)
            raise

    def _noise(self, count: int) -> Tensor:
        """(samples, views, `BRANCHES`) numbers for stochastic depth: the teacher's two views, the student's three.

        They depend on the seed, the step and a sample's place in the batch alone: not on the number of processes, nor
        on what was drawn before. So a run that goes on needs no state of a generator.
        """
        rng = np.random.default_rng((self.config.run.seed, 2, self.step))
        noise = rng.random((count * self.processes.size, 5, BRANCHES), np.float32)
        first = count * self.processes.rank
        return torch.from_numpy(noise[first : first + count])

    def _forward_backward(
        self, view_1: Tensor, view_2: Tensor, xray: Tensor, noise: Tensor, teacher_temp: float
    ) -> tuple[Tensor, Tensor]:
        """Add a part of the batch to the gradients.

        Returns:
            (2K + 6 + C,): sums over the samples of the teacher's logits, its probabilities, their entropy, the
            agreement of its two views; the losses of the stages; the sum of the teacher's features. And these
            features, (2B, C).
        """
        # moved before they are joined: what `cat` makes on the host is not pinned, and a copy of it would be waited for
        ct = torch.cat([view.to(self.device, non_blocking=True) for view in (view_1, view_2)])
        xray = xray.to(self.device, non_blocking=True)
        teacher_noise, student_noise = (
            part.permute(2, 1, 0).flatten(1).to(self.device, non_blocking=True) for part in noise.split([2, 3], dim=1)
        )
        dtype = _AUTOCAST_DTYPE[self.config.run.amp]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            teacher_logits, features = self._teacher(ct, teacher_noise)
            student_logits = self._student(ct, xray, student_noise)
        loss = self.config.loss
        terms = deep_distillation_loss(
            student_logits,
            teacher_logits,
            self.center,
            teacher_temp,
            loss.student_temp,
            loss.xray_weight,
            loss.stage_weights,
        )
        self.scaler.scale(terms.total / self.config.run.accumulate).backward()
        features = features.float()
        sums = [
            teacher_logits.float().sum(0),
            terms.teacher_probabilities.sum(0),
            *entropy_and_agreement(terms.teacher_probabilities),
            terms.levels,
            features.sum(0),
        ]
        return torch.cat(sums), features

    def _update_student(self, rates: Rates, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Clip, drop what is frozen, AdamW.

        Returns:
            The gradient norms before clipping, and whether the step is finite; if not, the student stays as it is.
        """
        self.scaler.unscale_(self.optimizer)
        norms = clip_each_gradient(self.student.parameters(), self.config.optim.clip_grad)
        finite = step_is_finite(sums, norms, self.scaler)
        if rates.last_layers_frozen:
            for parameter in self.student.last_layer_parameters():
                parameter.grad = None  # so AdamW skips it, decay included
        # what the fused AdamW reads on the device; the scaler of fp16 puts its own there
        self.optimizer.found_inf = (~finite).float()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norms, finite

    def is_finite(self) -> bool:
        """Whether all weights are; waits for the device."""
        weights = [*self.student.parameters(), *self.teacher.parameters(), self.center]
        return bool(torch.stack([weight.detach().isfinite().all() for weight in weights]).all())

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly here, as tensors and plain values."""
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "center": self.center,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            KeyError: an entry is missing.
            RuntimeError: weights of other keys or shapes.
        """
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.center = state["center"].to(self.device)
        groups = self.optimizer.state_dict()["param_groups"]  # settings that PyTorch adds stay as this version has them
        for own, saved in zip(groups, state["optimizer"]["param_groups"], strict=True):
            own.update({name: saved[name] for name in GROUP_SETTINGS})
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
