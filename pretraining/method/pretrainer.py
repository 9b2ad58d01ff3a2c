"""The state of a pre-training run and its one operation, the training step.

Paper: CADS (IEEE TMI 2025); CADS method, sections 4 and 5. Checked step by step against the published code.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pretraining.config import PretrainConfig
from pretraining.method.diagnostics import (
    StepResult,
    StepSums,
    gather_statistics,
    step_is_finite,
)
from pretraining.method.loss import deep_distillation_loss, place_loss, update_center, weighted_mean
from pretraining.method.optimisation import GROUP_SETTINGS, clip_each_gradient, parameter_groups, set_rates
from pretraining.method.places import Places
from pretraining.method.points import contrast
from pretraining.method.restoration import restoration_loss
from pretraining.method.schedules import rates
from pretraining.method.student_teacher import Shown, Student, Teacher
from pretraining.system.processes import SINGLE_PROCESS, Processes
from pretraining.views.batches import in_parts, to_device
from pretraining.views.corrupted_crops import Crop
from pretraining.views.loader import Sample
from pretraining.views.make_views import show_in_window
from pretraining.views.point_pairs import PointPair
from pretraining.views.streams import Stream, generator

_AUTOCAST_DTYPE = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Part(NamedTuple):
    """What one backward pass takes of a rank's batch: b samples, on the device."""

    student: tuple[Shown | Tensor | None, ...]  # arguments of `Student.forward`
    teacher: tuple[Shown, ...]  # arguments of `Teacher.forward`; empty where the run does not distil
    crop: Crop | None  # (b, 1, D, H, W) each; None where the run does not restore
    exchange: AbstractContextManager  # around its passes: the ranks average their gradients in the last part's


class Pretrainer:
    """Student, teacher, center and optimizer of a run. All ranks hold the same.

    Args:
        config: the run's configuration.
        steps_per_epoch: steps that make an epoch.
        device: where to compute.
        processes: the ranks of the run.
    """

    def __init__(
        self,
        config: PretrainConfig,
        steps_per_epoch: int,
        device: torch.device,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.config, self.steps_per_epoch, self.device, self.processes = config, steps_per_epoch, device, processes
        self.step = 0
        torch.manual_seed(config.run.seed)
        self.student = Student(config).to(device)
        self.teacher = Teacher(self.student).to(device)
        # train mode for both: the published teacher keeps its stochastic depth
        self.student.train()
        self.teacher.train()
        self.center = torch.zeros(config.model.head_out_dim, device=device)
        self.place_center = torch.zeros_like(self.center)  # of the teacher's logits of places
        groups, optim = parameter_groups(self.student), config.optim
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=optim.adam_betas, eps=optim.adam_eps, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.run.amp == "fp16")
        self._student, self._teacher = processes.data_parallel(self.student), self.teacher
        self._without_exchange = getattr(self._student, "no_sync", nullcontext)
        if config.run.compile:
            self._student, self._teacher = torch.compile(self._student), torch.compile(self._teacher)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.optim.epochs * self.steps_per_epoch

    def train_step(
        self,
        view_1: Tensor | None,
        view_2: Tensor | None,
        xray: Tensor | None,
        crop: Crop | None = None,
        pair: PointPair | None = None,
    ) -> StepResult:
        """One step on this rank's part of the batch.

        Nothing of the state changes before all ranks have finished their backward passes, so a step in which one of
        them fails has not happened. A step whose loss or gradients are not finite changes nothing but the step's
        number; that is decided on the device, so no GPU is waited for.

        Args:
            view_1: first CT view (B, 1, D, H, W); this and the next two are None where the run does not distil.
            view_2: second CT view, same shape.
            xray: radiographs (B, 1, H, W).
            crop: crops to restore (B, 1, D, H, W), where the run restores.
            pair: pairs of crops (B, 1, D, H, W), where the run contrasts points.
        """
        now = rates(self.config, self.step, self.steps_per_epoch)
        set_rates(self.optimizer, now)
        self.optimizer.zero_grad(set_to_none=True)
        with self._buffers_kept_on_error() as buffers:
            sample = Sample(view_1, view_2, xray, crop, pair)
            parts = [self._backward(part, now.teacher_temp) for part in self._parts(sample)]
            batch = gather_statistics(parts, self.processes)
        self.scaler.unscale_(self.optimizer)
        norms = clip_each_gradient(self.student.parameters(), self.config.optim.clip_grad)
        finite = step_is_finite(batch.sums, norms, self.scaler)
        if now.last_layers_frozen:
            self.student.drop_last_layer_gradients()
        self._step_optimizer(finite)
        self.teacher.update(self.student, (1.0 - now.teacher_momentum) * finite)
        if batch.mean_logits is not None:
            center = update_center(self.center, batch.mean_logits, self.config.loss.center_momentum)
            self.center = torch.where(finite, center, self.center)
        if batch.mean_place_logits is not None:
            center = update_center(self.place_center, batch.mean_place_logits, self.config.loss.center_momentum)
            self.place_center = torch.where(finite, center, self.place_center)
        for buffer, before in buffers:  # running statistics of batch normalisation
            buffer.copy_(torch.where(finite, buffer, before))
        self.step += 1
        losses = dict(zip(self.config.weights, batch.losses.unbind(), strict=True))
        levels = self.config.point.level_weights if self.config.has_points else ()
        found = dict(zip(levels, batch.points_found.unbind(), strict=True))
        return StepResult(self._total(losses), losses, batch.stage_losses, found, norms, finite, batch.health, now)

    def _total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the losses, ()."""
        return sum(weight * losses[name] for name, weight in self.config.weights.items())

    def _backward(self, part: Part, teacher_temp: float) -> tuple[StepSums, Tensor | None]:
        """Teacher, student, loss and backward for a part of the batch; returns its sums and features (2b, C).

        What is large ends with this call, before the next part's passes and the optimizer's step.
        """
        config, teacher, terms, found, losses = self.config, None, None, None, {}
        with part.exchange:
            with self._autocast():
                if part.teacher:
                    teacher = self._teacher(*part.teacher)
                student = self._student(*part.student)
            if teacher is not None:
                terms = deep_distillation_loss(
                    student.logits, teacher.logits, self.center, teacher_temp,
                    config.loss.student_temp, config.loss.xray_weight, config.loss.stage_weights,
                )  # fmt: skip
                losses["distillation"] = terms.total
            if part.crop is not None:
                crop = part.crop
                losses["restoration"] = restoration_loss(student.restored, crop.truth, crop.judged, config.restoration)
            for name in Places._fields:
                if name not in config.weights:
                    continue
                losses[name] = place_loss(
                    getattr(student.places, name), getattr(teacher.places, name), self.place_center, teacher_temp,
                    config.loss.student_temp, config.loss.stage_weights,
                )  # fmt: skip
            if config.has_points:
                of_levels, found = contrast(student.points, config.point.point_temp)
                losses["points"] = weighted_mean(of_levels, config.point.level_weights.values())
            self.scaler.scale(self._total(losses) / config.run.accumulate).backward()
        sums = StepSums.of_part([losses[name] for name in config.weights], terms, teacher, found)
        return sums, None if teacher is None else teacher.features

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

    def _parts(self, sample: Sample) -> Iterator[Part]:
        """This rank's batch in ``accumulate`` parts, each moved to the device when it is its turn."""
        config, count = self.config, self.config.run.accumulate
        noises = (
            self._noise(5, Stream.DEPTH_OF_VIEWS) if config.distils else None,
            self._noise(3 if config.has_places else 1, Stream.DEPTH_OF_CROPS) if config.restores else None,
            self._noise(2, Stream.DEPTH_OF_PAIRS) if config.has_points else None,
        )
        rows = zip(in_parts(sample, count), *(in_parts(noise, count) for noise in noises), strict=True)
        for i, row in enumerate(rows):
            exchange = nullcontext() if i == count - 1 else self._without_exchange()
            # moved before they are joined: what `cat` makes on the host is not pinned, and its copy would be waited for
            yield self._part(*to_device(row, self.device), exchange)

    def _part(
        self,
        sample: Sample,
        of_views: Tensor | None,
        of_crops: Tensor | None,
        of_pairs: Tensor | None,
        exchange: AbstractContextManager,
    ) -> Part:
        """What student and teacher are shown of some samples, with the noise (b, views, branches) for each.

        The noise of CT and X-ray is the teacher's for two views, then the student's for three; that of crops is the
        student's for the crop and its X-ray, and the teacher's for the crop.
        """
        ct = xray = crops = crop_xrays = pairs = points = None
        teacher: tuple[Shown, ...] = ()
        if sample.view_1 is not None:
            images = torch.cat([sample.view_1, sample.view_2])
            teacher += (Shown(images, _by_branch(of_views[:, :2])),)
            ct, xray = Shown(images, _by_branch(of_views[:, 2:4])), Shown(sample.xray, _by_branch(of_views[:, 4:]))
        if sample.crop is not None:
            crops = Shown(sample.crop.seen, _by_branch(of_crops[:, :1]))
            if sample.crop.xray is not None:
                crop_xrays = Shown(sample.crop.xray, _by_branch(of_crops[:, 1:2]))
        if self.config.has_places:
            sound = show_in_window(sample.crop.truth.clone(), self.config.view.intensity_window)
            teacher += (Shown(sound, _by_branch(of_crops[:, 2:])),)
        if sample.pair is not None:
            pairs = Shown(torch.cat([sample.pair.crop_1, sample.pair.crop_2]), _by_branch(of_pairs))
            points = torch.cat([sample.pair.points_1, sample.pair.points_2])
        return Part((ct, xray, crops, crop_xrays, pairs, points), teacher, sample.crop, exchange)

    def _noise(self, views: int, stream: Stream) -> Tensor:
        """(samples, views, branches) numbers for stochastic depth, of this rank's samples.

        They depend on the seed, the step and a sample's place in the batch alone: not on the number of ranks, nor on
        what was drawn before. So a run that resumes needs no state of a generator.
        """
        rng, batch_size = generator(self.config.run.seed, stream, self.step), self.config.optim.batch_size
        noise = rng.random((batch_size, views, self.student.backbone.branches), np.float32)
        count = batch_size // self.processes.world_size
        first = count * self.processes.rank
        return torch.from_numpy(noise[first : first + count])

    def _autocast(self) -> torch.autocast:
        dtype = _AUTOCAST_DTYPE[self.config.run.amp]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _step_optimizer(self, finite: Tensor) -> None:
        """AdamW; the student stays as it is where the step is not finite."""
        # what the fused AdamW reads on the device; the scaler of fp16 puts its own there
        self.optimizer.found_inf = (~finite).float()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def restore(self, seen: Tensor) -> Tensor:
        """What the student makes of corrupted crops (B, 1, D, H, W), on the host, in units of the window."""
        with self._looking_at_the_student():
            return self.student.restore(seen.to(self.device)).float().cpu()

    def similarity(self, pair: PointPair) -> Tensor:
        """How alike the student finds the point of each crop 1 and the voxels of that slice of crop 2 where it is.

        Args:
            pair: with one point (B, 1, 3).

        Returns:
            Cosines (L, B, H, W) by level, on the host.
        """
        height, width = pair.crop_2.shape[3:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        in_plane = torch.stack([rows, columns], dim=-1).float().flatten(0, 1).expand(len(pair.crop_2), -1, -1)
        of_slice = torch.cat([pair.points_2[..., :1].expand(-1, height * width, 1), in_plane], dim=-1)
        with self._looking_at_the_student():
            shown = ((pair.crop_1, pair.points_1), (pair.crop_2, of_slice))
            of_point, of_voxels = (self.student.features(*to_device(crop, self.device)) for crop in shown)
        cosines = [b @ a.mT for a, b in zip(of_point, of_voxels, strict=True)]
        return torch.stack(cosines).unflatten(2, (height, width))[..., 0].cpu()

    @contextmanager
    def _looking_at_the_student(self) -> Iterator[None]:
        """As it is, without stochastic depth and gradients."""
        self.student.eval()
        try:
            with torch.no_grad(), self._autocast():
                yield
        finally:
            self.student.train()

    def is_finite(self) -> bool:
        """Whether all weights are; waits for the device."""
        weights = [*self.student.parameters(), *self.teacher.parameters(), self.center]
        return bool(torch.stack([weight.detach().isfinite().all() for weight in weights]).all())

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume exactly here, as tensors and plain values."""
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "center": self.center,
            **({"place_center": self.place_center} if self.config.has_places else {}),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`.

        Raises:
            KeyError: an entry is missing.
            RuntimeError: weights of other keys or shapes.
        """
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.center = state["center"].to(self.device)
        if self.config.has_places:
            self.place_center = state["place_center"].to(self.device)
        groups = self.optimizer.state_dict()["param_groups"]  # settings that PyTorch adds stay as this version has them
        for own, saved in zip(groups, state["optimizer"]["param_groups"], strict=True):
            own.update({name: saved[name] for name in GROUP_SETTINGS})
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]


def _by_branch(noise: Tensor) -> Tensor:
    """(b, views, branches) -> (branches, views x b), view by view as the images are."""
    return noise.permute(2, 1, 0).flatten(1)
