"""The training step, written plainly: log-softmax for every pair, one `.item()` per gradient norm, tensor by tensor."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.config import PretrainConfig
from pretraining.plain.model import Student, Teacher


class PlainTrainer:
    """Student, teacher, center and optimizer with `pretraining.method.pretrainer.Pretrainer`'s rates.

    Args:
        config: the run's configuration; float32 whatever it says.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.student = Student(config.model)
        self.teacher = Teacher(self.student)
        self.center = torch.zeros(1, config.model.head_out_dim)
        decayed, plain = [], []
        for name, parameter in self.student.named_parameters():
            if parameter.requires_grad:
                (plain if name.endswith(".bias") or parameter.dim() == 1 else decayed).append(parameter)
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=0.0)

    def train_step(self, view_1: Tensor, view_2: Tensor, xray: Tensor, rates) -> float:
        """One step on a batch with the given `pretraining.method.schedules.Rates`; returns the loss."""
        self.optimizer.param_groups[0]["weight_decay"] = rates.weight_decay
        for group in self.optimizer.param_groups:
            group["lr"] = rates.lr
        with torch.no_grad():
            teacher = self.teacher([view_1, view_2])
        student = self.student([view_1, view_2, xray])
        loss = sum(self._level_loss(level, teacher, rates.teacher_temp) for level in student) / len(student)
        with torch.no_grad():
            momentum = self.config.loss.center_momentum
            mean = torch.cat(teacher).sum(dim=0, keepdim=True) / (2 * len(view_1))
            self.center = self.center * momentum + mean * (1 - momentum)
        self.optimizer.zero_grad()
        loss.backward()
        self._clip()
        if rates.last_layers_frozen:
            for name, parameter in self.student.named_parameters():
                if "last_layer" in name:
                    parameter.grad = None
        self.optimizer.step()
        with torch.no_grad():
            source = dict(self.student.named_parameters())
            for name, parameter in self.teacher.named_parameters():
                momentum = rates.teacher_momentum
                parameter.data.mul_(momentum).add_((1 - momentum) * source[name].detach().data)
        return loss.item()

    def _level_loss(self, student: list[Tensor], teacher: list[Tensor], temperature: float) -> Tensor:
        total, pairs = 0.0, 0
        for t, teacher_view in enumerate(teacher):
            target = F.softmax((teacher_view - self.center) / temperature, dim=-1)
            for s, student_view in enumerate(student):
                if s != t:
                    prediction = F.log_softmax(student_view / self.config.loss.student_temp, dim=-1)
                    total = total + torch.sum(-target * prediction, dim=-1).mean()
                    pairs += 1
        return total / pairs

    def _clip(self) -> None:
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                norm = parameter.grad.data.norm(2)
                factor = self.config.optim.clip_grad / (norm.item() + 1e-6)
                if factor < 1:
                    parameter.grad.data.mul_(factor)
