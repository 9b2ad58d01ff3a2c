"""What surrounds the training steps of a run: log, health, checkpoints, and the one place that decides on its end."""

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pretraining.method.diagnostics import StepResult
from pretraining.method.pretrainer import Pretrainer
from pretraining.method.restoration import UNITS_OF_WINDOW, target
from pretraining.run.checkpoint import save_checkpoint
from pretraining.run.folder import CHECKPOINT, METRICS, POINTS, PROGRESS, RESTORED
from pretraining.run.health import FiniteGuard, HealthWatch, not_finite_error
from pretraining.run.metrics import MetricsLog
from pretraining.store.store import StoreSummary
from pretraining.system.errors import UserError
from pretraining.system.processes import LostRankError
from pretraining.system.signals import stop_signals_collected
from pretraining.system.torch_errors import worker_failures_as_errors
from pretraining.views.loader import Sample
from pretraining.views.make_views import hu_of
from pretraining.views.point_pairs import point_in_the_middle

logger = logging.getLogger(__name__)

LOST_RANK = 1
"""Exit code of the ranks that are left when another has ended."""


class StopReason(IntEnum):
    """Why a run ends early. Where the ranks have different reasons, the highest holds for all of them."""

    NONE = 0
    SIGINT = 1
    SIGTERM = 2
    MAX_HOURS = 3
    NOT_FINITE = 4

    @classmethod
    def of_signal(cls, number: int) -> "StopReason":
        """The reason that SIGINT or SIGTERM is."""
        return cls[signal.Signals(number).name]

    @property
    def exit_code(self) -> int:
        """Of a run that has saved and ended for this reason."""
        is_signal = self in (StopReason.SIGINT, StopReason.SIGTERM)
        return 128 + signal.Signals[self.name] if is_signal else 0

    def __str__(self) -> str:
        return "the limit of --max-hours" if self is StopReason.MAX_HOURS else self.name


@dataclass
class Run:
    """A run at work; made by `open_run`."""

    output: Path
    pretrainer: Pretrainer  # at the step where the run begins or resumes
    store: StoreSummary
    how_to_resume: str  # for the messages of a run that ends early
    deadline: float  # `time.monotonic` after which it stops, or infinity
    received: list[int]  # numbers of the stop signals that this process has received; it grows
    bar: tqdm
    examples: Sample  # of which each save draws what the student makes, where the run has crops or pairs

    def __post_init__(self) -> None:
        config, self._processes = self.pretrainer.config, self.pretrainer.processes
        self._metrics = MetricsLog(self.output / METRICS, self.pretrainer.step, self._processes.is_rank0)
        self._guard = FiniteGuard(config.run.on_nan, self._processes.is_rank0)
        self._health = HealthWatch(config.model.head_out_dim, config.point.point_count)
        self._line_begun, self._line_first_step = time.perf_counter(), self.pretrainer.step
        self._saved, self._save_seconds = time.monotonic(), 60 * config.run.save_minutes or math.inf

    def agree_to_stop(self, result: StepResult) -> StopReason:
        """Whether the run ends with this step, and why; the same on all ranks, by one exchange."""
        own = StopReason.NONE
        if self._guard.must_end(self.pretrainer.step, result):
            own = StopReason.NOT_FINITE
        elif self.received:
            own = StopReason.of_signal(self.received[0])
        elif time.monotonic() > self.deadline:
            own = StopReason.MAX_HOURS
        return StopReason(self._processes.max_over_ranks(own))

    def after_step(self, result: StepResult, stop: StopReason) -> bool:
        """Log the step, look at the run's health, save where it is time; returns whether the run ends here.

        All ranks look at the weights after each epoch and at a stop, so that they end together; rank 0 also every
        ``save_minutes``. Only finite weights are saved, and nothing after a step that must end the run for NaN: the
        weights may have been on their way there.

        Raises:
            UserError: loss, gradients or weights are not finite.
        """
        pretrainer = self.pretrainer
        if stop is StopReason.NOT_FINITE:
            raise self._not_finite()
        self._metrics.add(result)
        self.bar.update()
        epoch_ended = pretrainer.step % pretrainer.steps_per_epoch == 0
        if epoch_ended or stop or pretrainer.step % pretrainer.config.run.log_every == 0:
            self._write_line()
        if epoch_ended or stop:
            if not pretrainer.is_finite():
                raise self._not_finite()
            self._save()
        elif self._processes.is_rank0 and time.monotonic() - self._saved > self._save_seconds:
            if pretrainer.is_finite():
                self._save()
            self._saved = time.monotonic()
        if stop and self._processes.is_rank0:
            logger.info(
                "stopped by %s at step %d of %d; %s", stop, pretrainer.step, pretrainer.total_steps, self.how_to_resume
            )
        return bool(stop)

    def end_after_lost_rank(self, error: LostRankError) -> int:
        """Report it, save the last finished step where that cannot hang, and return the exit code."""
        pretrainer = self.pretrainer
        logger.error(
            "rank %d stops at step %d: %s; %s", self._processes.rank, pretrainer.step, error, self.how_to_resume
        )
        # A step that failed has changed nothing; where the ranks then failed to agree on stopping, it is done.
        # Nothing is read from a GPU, which may wait for the lost rank for ever.
        if self._processes.is_rank0 and pretrainer.device.type == "cpu" and pretrainer.is_finite():
            save_checkpoint(self.output / CHECKPOINT, pretrainer, self.store)
        return LOST_RANK

    def _save(self) -> None:
        if self._processes.is_rank0:
            save_checkpoint(self.output / CHECKPOINT, self.pretrainer, self.store)
            self._draw()
        self._saved = time.monotonic()

    def _draw(self) -> None:
        from pretraining.run.pictures import plot_points, plot_progress, plot_restored

        config, crop, pair = self.pretrainer.config, self.examples.crop, self.examples.pair
        plot_progress(self._metrics.lines, config, self.output / PROGRESS)
        if crop is not None:
            seen_hu = hu_of(crop.seen, config.view.intensity_window)
            seen, truth = (target(hu, config.restoration) for hu in (seen_hu, crop.truth))
            # elsewhere the loss does not look, and the student answers anything
            restored = torch.where(crop.judged, self.pretrainer.restore(crop.seen), seen)
            plot_restored(seen, restored, truth, UNITS_OF_WINDOW / 2, self.output / RESTORED)
        if pair is not None:
            chosen = point_in_the_middle(pair)
            plot_points(chosen, config.point.level_weights, self.pretrainer.similarity(chosen), self.output / POINTS)

    def _write_line(self) -> None:
        """A line of metrics.jsonl, the alarms it raises, and what the bar shows."""
        step, epoch = self.pretrainer.step, (self.pretrainer.step - 1) // self.pretrainer.steps_per_epoch
        samples = (step - self._line_first_step) * self.pretrainer.config.optim.batch_size
        speed = samples / (time.perf_counter() - self._line_begun)
        line = self._metrics.write(step - 1, epoch, samples_per_second=round(speed, 3))
        self._line_begun, self._line_first_step = time.perf_counter(), step
        if line and self._processes.is_rank0:
            self._health.look(self._metrics.lines)
            self.bar.set_postfix_str(f"epoch {epoch + 1}, loss {line['loss']:.3f}, {speed:.1f} samples/s")

    def _not_finite(self) -> UserError:
        if not self._processes.is_rank0:
            return UserError("")
        return not_finite_error(self.output / CHECKPOINT, self.pretrainer.step, self.pretrainer.config)


@contextmanager
def open_run(
    output: Path,
    pretrainer: Pretrainer,
    store: StoreSummary,
    how_to_resume: str,
    deadline: float,
    examples: Sample,
) -> Iterator[Run]:
    """A run at work: signals wait for the end of a step, and lines of the log leave the progress bar whole.

    The arguments are the attributes of `Run`.

    Raises:
        UserError: the processes that prepare views fail.
    """
    with (
        stop_signals_collected("finishing the running step, then saving") as received,
        worker_failures_as_errors(how_to_resume),
        logging_redirect_tqdm([logging.getLogger("pretraining")]),
        tqdm(total=pretrainer.total_steps, initial=pretrainer.step, unit="step", dynamic_ncols=True, mininterval=1.0,
             smoothing=0.1, disable=not pretrainer.processes.is_rank0) as bar,
    ):  # fmt: skip
        yield Run(output, pretrainer, store, how_to_resume, deadline, received, bar, examples)
