"""`cads_pretrain`: from a store to an encoder checkpoint."""

import argparse
import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pretraining.config import PRESETS, PretrainConfig, add_setting_flags
from pretraining.method.pretrainer import Pretrainer
from pretraining.plain.train import train_plain
from pretraining.run.checkpoint import encoder_record, load_checkpoint, save_checkpoint, save_encoder
from pretraining.run.estimate import estimate
from pretraining.run.folder import CHECKPOINT, ENCODER, METRICS, PROGRESS, check_shares, prepare_output, saved_device
from pretraining.run.health import FiniteGuard, HealthWatch, not_finite_error
from pretraining.run.metrics import MetricsLog, plot_progress
from pretraining.run.stopping import StopRequest, stop_signals
from pretraining.store.store import Store
from pretraining.system.command import run_command
from pretraining.system.devices import choose_device, prepare_device, start_processes
from pretraining.system.errors import UserError
from pretraining.system.processes import ALONE, LostProcessError, Processes
from pretraining.system.torch_errors import no_memory_as_error
from pretraining.views.batches import batches, worker_failures_as_errors
from pretraining.views.loader import ViewStream, make_loader, steps_per_epoch

logger = logging.getLogger(__name__)

LOST_PROCESS = 1
"""Exit code of the processes that are left when another of the run has ended."""


def train(store_path: Path, output: Path, config: PretrainConfig, processes: Processes = ALONE) -> int:
    """Begin a run in ``output``, or go on with the one there (see `pretraining.run.folder`), until its end or a stop.

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


def main(argv: list[str] | None = None) -> int:
    """`cads_pretrain STORE OUTPUT`: self-supervised training on a store."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:

    parser = argparse.ArgumentParser(
        prog="cads_pretrain",
        usage="cads_pretrain STORE OUTPUT [--preset NAME] [--c] [flags]",
        description="Pre-train the CADS encoder on a store that cads_preprocess wrote. The defaults are the published "
        "run; a preset changes some of them (docs/pretraining.md), and flags change single ones.",
        allow_abbrev=False,
    )
    parser.add_argument("store", metavar="STORE", type=Path, help="folder that cads_preprocess wrote")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="folder of the run; new, except with --c")
    parser.add_argument("--c", action="store_true", help="continue the run in OUTPUT exactly where it stopped")
    parser.add_argument("--estimate", action="store_true", help="say what the run would cost, and write nothing")
    parser.add_argument("--plain", action="store_true", help="train with plain CADS, written to be read: slow, no --c")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="published (default), small (one GPU), demo (CPU)")
    add_setting_flags(parser)
    arguments = vars(parser.parse_args(argv))
    store, output, go_on = arguments.pop("store"), arguments.pop("output"), arguments.pop("c")
    only_estimate, plain = arguments.pop("estimate"), arguments.pop("plain")
    preset = PRESETS[arguments.pop("preset", None) or "published"]
    settings = {**preset, **arguments}
    if plain:
        if go_on or only_estimate:
            raise UserError("--plain has neither --c nor --estimate; leave them out")
        return train_plain(store, output, PretrainConfig().replace(**settings))
    device = settings.get("device") or (saved_device(output) if go_on else "auto")
    with no_memory_as_error(), start_processes(device) as processes:
        if only_estimate:
            return estimate_run(store, PretrainConfig().replace(**settings), processes)
        with ExitStack() as held:
            config = processes.from_first(lambda: prepare_output(output, settings, store, go_on, held, processes))
            return train(store, output, config, processes)


if __name__ == "__main__":  # torchrun --nproc_per_node=N -m pretraining.train STORE OUTPUT
    sys.exit(main())
