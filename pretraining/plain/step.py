"""One training step: schedules, loss, center, clipping, AdamW and the teacher's average (CADS method, 4 and 5).

Every pair of views has its own cross-entropy, every weight its own lines, and numbers are read from the device whenever
they are wanted. float32, one process.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.config import PretrainConfig
from pretraining.plain.model import Student, Teacher


class Schedules:
    """What changes over a run (section 5; the temperature: section 4), as arrays over all of its steps or epochs.

    Attributes:
        lr: of each step: linear from 0 to the peak over the warm-up, then half a cosine.
        weight_decay: of each step.
        teacher_momentum: of each step.
        teacher_temp: of each epoch.
    """

    def __init__(self, config: PretrainConfig, steps_per_epoch: int) -> None:
        optim, loss = config.optim, config.loss
        steps, warm_up = optim.epochs * steps_per_epoch, optim.warmup_epochs * steps_per_epoch
        peak = optim.lr * optim.batch_size / 256
        self.lr = np.concatenate([np.linspace(0, peak, warm_up), half_cosine(peak, optim.min_lr, steps - warm_up)])
        self.weight_decay = half_cosine(*optim.weight_decay, steps)
        self.teacher_momentum = half_cosine(*optim.teacher_momentum, steps)
        rising = np.linspace(*loss.teacher_temp, loss.warmup_teacher_temp_epochs)
        self.teacher_temp = np.concatenate([rising, np.full(optim.epochs, loss.teacher_temp[1])])


def half_cosine(start: float, end: float, steps: int) -> np.ndarray:
    """From ``start`` towards ``end``, one value for each step."""
    return end + (start - end) * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2


class PlainTrainer:
    """Student, teacher, center and AdamW of a run.

    Args:
        config: the run's configuration; float32 whatever it says.
        steps_per_epoch: steps that make an epoch.
        device: where to compute.
    """

    def __init__(self, config: PretrainConfig, steps_per_epoch: int, device: torch.device | str = "cpu") -> None:
        self.config, self.steps_per_epoch, self.device, self.step = config, steps_per_epoch, device, 0
        self.schedules = Schedules(config, steps_per_epoch)
        torch.manual_seed(config.run.seed)
        self.student = Student(config.model).to(device)
        self.teacher = Teacher(self.student)
        self.center = torch.zeros(config.model.head_out_dim, device=device)
        decayed, not_decayed = [], []
        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad:
                is_vector = name.endswith(".bias") or parameter.dim() == 1
                (not_decayed if is_vector else decayed).append(parameter)
        groups = [{"params": decayed}, {"params": not_decayed, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.optim.adam_betas, eps=config.optim.adam_eps)

    def train_step(self, view_1: Tensor, view_2: Tensor, xray: Tensor) -> list[float]:
        """One step on a batch: CT views (B, 1, D, H, W), X-rays (B, 1, H, W).

        Returns:
            The losses of the four stages before the step, shallow to deep; their mean is the loss.
        """
        epoch = self.step // self.steps_per_epoch
        view_1, view_2, xray = (view.to(self.device) for view in (view_1, view_2, xray))
        with torch.no_grad():
            teacher = self.teacher([view_1, view_2])
        student = self.student([view_1, view_2, xray])
        losses = [self._stage_loss(logits, teacher, self.schedules.teacher_temp[epoch]) for logits in student]
        self.optimizer.zero_grad()
        (sum(losses) / len(losses)).backward()
        self._clip_gradients()
        if epoch < self.config.optim.freeze_last_layer_epochs:
            self._drop_gradients_of_last_layers()
        self._update_student()
        self._update_teacher()
        self._update_center(teacher)
        self.step += 1
        return [loss.item() for loss in losses]

    def _stage_loss(self, student: list[Tensor], teacher: list[Tensor], temperature: float) -> Tensor:
        """Section 4: the mean cross-entropy of CT1-CT2, CT1-X, CT2-CT1 and CT2-X (teacher's view - student's view)."""
        pairs = []
        for t, teacher_logits in enumerate(teacher):
            target = F.softmax((teacher_logits - self.center) / temperature, dim=-1)
            for s, student_logits in enumerate(student):
                if s != t:
                    prediction = F.log_softmax(student_logits / self.config.loss.student_temp, dim=-1)
                    pairs.append(-(target * prediction).sum(dim=-1).mean())
        return sum(pairs) / len(pairs)

    def _clip_gradients(self) -> None:
        """Section 5: every tensor's gradient, by its own norm; 0 switches this off."""
        limit = self.config.optim.clip_grad
        for parameter in self.student.parameters():
            if limit > 0 and parameter.grad is not None:
                norm = parameter.grad.norm().item()
                if norm > limit:
                    parameter.grad *= limit / norm

    def _drop_gradients_of_last_layers(self) -> None:
        """Section 5: AdamW then skips these weights, decay included."""
        for name, parameter in self.student.named_parameters():
            if "last_layer" in name:
                parameter.grad = None

    def _update_student(self) -> None:
        """Section 5: AdamW with the rates of this step."""
        decayed, not_decayed = self.optimizer.param_groups
        decayed["weight_decay"] = self.schedules.weight_decay[self.step]
        decayed["lr"] = not_decayed["lr"] = self.schedules.lr[self.step]
        self.optimizer.step()

    @torch.no_grad()
    def _update_teacher(self) -> None:
        """Section 4: teacher = m teacher + (1 - m) student."""
        m, student = self.schedules.teacher_momentum[self.step], dict(self.student.named_parameters())
        for name, parameter in self.teacher.named_parameters():
            parameter.copy_(m * parameter + (1 - m) * student[name])

    def _update_center(self, teacher: list[Tensor]) -> None:
        """Section 4: center = 0.9 center + 0.1 mean of the teacher's outputs of this step."""
        m = self.config.loss.center_momentum
        self.center = m * self.center + (1 - m) * torch.cat(teacher).mean(dim=0)
