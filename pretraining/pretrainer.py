"""The state of a pre-training run and its one operation, the training step.

Paper: CADS (IEEE TMI 2025); CADS method, sections 4 and 5. Checked step by step against the published code.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretraining.config import PretrainConfig
from pretraining.loss import deep_distillation_loss, update_center
from pretraining.models.networks import Student, Teacher
from pretraining.optimisation import clip_each_gradient, parameter_groups
from pretraining.schedules import cosine, linspace, warmup_cosine

_AUTOCAST_DTYPE = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Rates:
    """The scheduled quantities of one step."""

    lr: float
    weight_decay: float
    teacher_momentum: float
    teacher_temp: float
    last_layers_frozen: bool


@dataclass(frozen=True)
class StepResult:
    """What a step reports; tensors stay on the device, so that nothing waits for them.

    Attributes:
        loss: total before the step's update.
        levels: (4,) losses of the stages, shallow to deep.
        gradient_norms: (number of gradients,) before clipping.
        teacher_entropy: mean entropy of the teacher's probabilities, in nats; ln K when they are uniform.
        mutual_information: entropy of their mean minus their mean entropy; near 0 when all samples look alike.
        view_agreement: fraction of samples whose two CT views have the same most probable teacher output.
        rates: the scheduled quantities used.
    """

    loss: Tensor
    levels: Tensor
    gradient_norms: Tensor
    teacher_entropy: Tensor
    mutual_information: Tensor
    view_agreement: Tensor
    rates: Rates


class Pretrainer:
    """Student, teacher, center, optimizer and random state of a run.

    Args:
        config: the run's configuration.
        steps_per_epoch: steps that make an epoch.
        device: where to compute.
    """

    def __init__(self, config: PretrainConfig, steps_per_epoch: int, device: torch.device) -> None:
        self.config, self.steps_per_epoch, self.device = config, steps_per_epoch, device
        self.step = 0
        torch.manual_seed(config.run.seed)
        self.student = Student(config.model).to(device)
        self.teacher = Teacher(self.student).to(device)
        # train mode for both: the published teacher keeps its stochastic depth
        self.student.train()
        self.teacher.train()
        self.center = torch.zeros(config.model.head_out_dim, device=device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student), lr=0.0, betas=(0.9, 0.999), eps=1e-8)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.run.precision == "fp16")
        self._student, self._teacher = self.student, self.teacher
        if config.run.compile:
            self._student, self._teacher = torch.compile(self.student), torch.compile(self.teacher)

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
        """One step on a batch.

        Args:
            view_1: first CT view (B, 1, D, H, W).
            view_2: second CT view, same shape.
            xray: radiographs (B, 1, H, W).
        """
        rates = self.rates()
        for group in self.optimizer.param_groups:
            group["lr"] = rates.lr
            group["weight_decay"] = rates.weight_decay if group["decayed"] else 0.0
        ct = torch.cat([view_1, view_2]).to(self.device, non_blocking=True)
        xray = xray.to(self.device, non_blocking=True)
        dtype = _AUTOCAST_DTYPE[self.config.run.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            teacher_logits = self._teacher(ct)
            student_logits = self._student(ct, xray)
        terms = deep_distillation_loss(
            student_logits, teacher_logits, self.center, rates.teacher_temp, self.config.loss.student_temp
        )
        self.center = update_center(self.center, teacher_logits, self.config.loss.center_momentum)
        norms = self._update_student(terms.total, rates)
        self.teacher.update(self.student, rates.teacher_momentum)
        self.step += 1
        return StepResult(
            terms.total.detach(), terms.levels, norms, *_teacher_health(terms.teacher_probabilities), rates
        )

    def _update_student(self, loss: Tensor, rates: Rates) -> Tensor:
        """Backward, clip, drop what is frozen, AdamW. Returns the gradient norms before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norms = clip_each_gradient(self.student.parameters(), self.config.optim.clip_grad)
        if rates.last_layers_frozen:
            for parameter in self.student.last_layer_parameters():
                parameter.grad = None  # so AdamW skips it, decay included
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norms

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly here, as tensors and plain values."""
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "center": self.center,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "rng_cpu": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.empty(0),
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
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        torch.set_rng_state(state["rng_cpu"].cpu())
        if self.device.type == "cuda" and state["rng_cuda"].numel():
            torch.cuda.set_rng_state(state["rng_cuda"].cpu(), self.device)


@torch.no_grad()
def _teacher_health(probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean entropy, mutual information and agreement of the views, from (2B, K) probabilities."""
    entropy = torch.special.entr(probabilities).sum(-1).mean()
    mean_entropy = torch.special.entr(probabilities.mean(0)).sum()
    first, second = probabilities.argmax(-1).chunk(2)
    return entropy, mean_entropy - entropy, (first == second).float().mean()
