"""`cads_pretrain`: from a store to an encoder checkpoint."""

import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pretraining.checkpoint import (
    CHECKPOINT,
    ENCODER,
    METRICS,
    PROGRESS,
    encoder_record,
    load_checkpoint,
    save_checkpoint,
    save_encoder,
)
from pretraining.config import PretrainConfig
from pretraining.data.batches import batches, worker_failures_as_errors
from pretraining.data.loader import ViewStream, make_loader, steps_per_epoch
from pretraining.data.store import Store
from pretraining.devices import prepare_device
from pretraining.distributed import ALONE, LostProcessError, Processes, check_shares, choose_device
from pretraining.errors import UserError
from pretraining.estimate import estimate
from pretraining.health import HealthWatch
from pretraining.metrics import MetricsLog, plot_progress
from pretraining.nonfinite import FiniteGuard, not_finite_error
from pretraining.pretrainer import Pretrainer
from pretraining.stopping import StopRequest, stop_signals

logger = logging.getLogger(__name__)

LOST_PROCESS = 1
"""Exit code of the processes that are left when another of the run has ended."""


def train(store_path: Path, output: Path, config: PretrainConfig, processes: Processes = ALONE) -> int:
    """Begin a run in ``output``, or go on with the one there (see `pretraining.run_folder`), until its end or a stop.

    Returns:
        0 when the run is finished or ``max_hours`` are over, 128 + signal number when a signal stopped it,
        `LOST_PROCESS` when another process of the run has ended.

    Raises:
        UserError: the store, the device or a checkpoint cannot be used, or the run is not finite any more.
    """
    started = time.monotonic()
    stream, device = _open(store_path, config, processes)
    fingerprint = stream.store.fingerprint()
    pretrainer = Pretrainer(config, steps_per_epoch(stream, config), device, processes)
    checkpoint = output / CHECKPOINT
    _load(checkpoint, pretrainer, fingerprint)
    go_on = f"go on with: cads_pretrain {store_path} {output} --c"
    if processes.size > 1:
        go_on = "go on with the same torchrun command and --c, or on any other number of processes"
    if processes.is_first:
        _log_start(pretrainer, stream, output)
    metrics = MetricsLog(output / METRICS, pretrainer.step, processes.is_first)
    with stop_signals() as received, worker_failures_as_errors(go_on):
        stop = StopRequest(received, processes, started + 3600 * config.run.max_hours if config.run.max_hours else None)
        try:
            for in_all_processes in _run_epochs(pretrainer, stream, metrics, stop):
                finite = pretrainer.is_finite()
                if in_all_processes and not finite:
                    stop.not_finite = True
                    break
                if processes.is_first and finite:
                    save_checkpoint(checkpoint, pretrainer, fingerprint)
                    plot_progress(metrics.lines, config.model.head_out_dim, output / PROGRESS)
        except LostProcessError as error:
            logger.error("process %d stops at step %d: %s; %s", processes.rank, pretrainer.step, error, go_on)
            # A step that failed has changed nothing; where the processes then failed to agree on stopping, it is done.
            # Nothing is read from a GPU, which may wait for the lost process for ever.
            if processes.is_first and device.type == "cpu" and pretrainer.is_finite():
                save_checkpoint(checkpoint, pretrainer, fingerprint)
            return LOST_PROCESS
    if stop.not_finite:
        raise not_finite_error(checkpoint, pretrainer.step, config) if processes.is_first else UserError("")
    if stop.reason:
        if processes.is_first:
            logger.info(
                "stopped by %s at step %d of %d; %s", stop.reason, pretrainer.step, pretrainer.total_steps, go_on
            )
        return stop.exit_code
    if processes.is_first:
        encoder = output / ENCODER
        save_encoder(encoder, pretrainer.teacher.backbone.state_dict(), encoder_record(config, pretrainer.step))
        logger.info("encoder: %s\nfine-tune from it with: export nnUNet_cads_encoder=%s", encoder, encoder.absolute())
    return 0


def estimate_run(store_path: Path, config: PretrainConfig, processes: Processes = ALONE) -> int:
    """Say what a run would cost, from a few steps on noise; nothing is written.

    Raises:
        UserError: the store or the device cannot be used.
    """
    processes.from_first(lambda: check_shares(config, processes))
    stream, device = _open(store_path, config, processes)
    result = estimate(config, steps_per_epoch(stream, config), device, processes)
    if processes.is_first:
        logger.info("%s", result)
    return 0


def _open(store_path: Path, config: PretrainConfig, processes: Processes) -> tuple[ViewStream, torch.device]:
    """The samples and the device of a run, after all that can be wrong with them has been looked for."""

    def look() -> tuple[ViewStream, torch.device]:
        return ViewStream(Store.open(store_path), config), choose_device(config.run.device, processes)

    stream, device = processes.in_all(look)
    prepare_device(device, config.run.amp)
    return stream, device


def _load(checkpoint: Path, pretrainer: Pretrainer, fingerprint: str) -> None:
    """Bring every process to the state of the checkpoint, where there is one.

    Raises:
        UserError: it cannot be used, or the processes did not find the same one.
    """
    processes = pretrainer.processes
    processes.in_all(lambda: load_checkpoint(checkpoint, pretrainer, fingerprint) if checkpoint.exists() else None)
    first, last = -processes.any(-pretrainer.step), processes.any(pretrainer.step)
    if first != last:
        raise UserError(
            f"{checkpoint}: the processes found it at different steps, from {first} to {last}, so the file system "
            "shows some of them an old state; wait a minute and start again"
            if processes.is_first
            else ""
        )


def _run_epochs(pretrainer: Pretrainer, stream: ViewStream, metrics: MetricsLog, stop: StopRequest) -> Iterator[bool]:
    """Take step after step; yield whenever the state should be saved.

    That is after each epoch and at a stop, in all processes at the same step: True; and in the first process every
    ``save_minutes``: False. A stop because of NaN saves nothing: the weights may have been on their way there.
    """
    config, total, processes = pretrainer.config, pretrainer.total_steps, pretrainer.processes
    loader = make_loader(stream, config, pretrainer.step, total, pretrainer.device, processes)
    bar = tqdm(total=total, initial=pretrainer.step, unit="step", dynamic_ncols=True, mininterval=1.0, smoothing=0.1,
               disable=not processes.is_first)  # fmt: skip
    guard, health = FiniteGuard(config.run.on_nan, processes.is_first), HealthWatch(config.model.head_out_dim)
    since, steps_before = time.perf_counter(), pretrainer.step
    saved, save_seconds = time.monotonic(), 60 * config.run.save_minutes or math.inf
    redirected = logging_redirect_tqdm([logging.getLogger("pretraining")])
    with redirected, bar, closing(batches(loader)) as views_of_steps:
        for views in views_of_steps:
            epoch = pretrainer.epoch
            with processes.watched():
                result = pretrainer.train_step(*views)
                stopping = stop.asked(guard.must_end(pretrainer.step, result))
            if stop.not_finite:
                return
            metrics.add(result)
            bar.update()
            done = pretrainer.step
            epoch_ended = done % pretrainer.steps_per_epoch == 0
            if done % config.run.log_every == 0 or epoch_ended or stopping:
                speed = (done - steps_before) * config.optim.batch_size / (time.perf_counter() - since)
                line = metrics.write(done - 1, epoch, samples_per_second=round(speed, 3))
                since, steps_before = time.perf_counter(), done
                if line and processes.is_first:
                    health.look(metrics.lines)
                    bar.set_postfix_str(f"epoch {epoch + 1}, loss {line['loss']:.3f}, {speed:.1f} samples/s")
            in_all_processes = epoch_ended or bool(stopping)
            if in_all_processes or (processes.is_first and time.monotonic() - saved > save_seconds):
                yield in_all_processes
                saved = time.monotonic()
            if stopping:
                break


def _log_start(pretrainer: Pretrainer, stream: ViewStream, output: Path) -> None:
    parameters = sum(p.numel() for p in pretrainer.student.parameters() if p.requires_grad)
    logger.info(
        "%s%d sub-volumes of %d volumes, %d steps of %d sub-volumes (%d epochs), %.1f M parameters, %s, %s",
        f"going on at step {pretrainer.step}: " if pretrainer.step else "",
        len(stream), len(stream.store.ids), pretrainer.total_steps, pretrainer.config.optim.batch_size,
        pretrainer.config.optim.epochs, parameters / 1e6, _where(pretrainer),
        {"none": "float32"}.get(pretrainer.config.run.amp, pretrainer.config.run.amp),
    )  # fmt: skip
    if pretrainer.device.type == "cpu" and pretrainer.config.run.amp == "bf16" and not _cpu_has_bf16():
        logger.warning("this CPU has no bf16 arithmetic: --amp none is many times faster here")
    logger.info("metrics: %s, curves: %s", output / METRICS, output / PROGRESS)


def _where(pretrainer: Pretrainer) -> str:
    size = pretrainer.processes.size
    return f"{size} processes on {pretrainer.device.type}" if size > 1 else str(pretrainer.device)


def _cpu_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


if __name__ == "__main__":  # torchrun --nproc_per_node=N -m pretraining.train STORE OUTPUT
    from pretraining.cli import pretrain

    sys.exit(pretrain())
