"""`cads_pretrain`: from a store to an encoder checkpoint."""

import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pretraining import __version__
from pretraining.checkpoint import (
    CHECKPOINT,
    CONFIG,
    ENCODER,
    METRICS,
    PROGRESS,
    encoder_record,
    load_checkpoint,
    save_checkpoint,
    save_encoder,
)
from pretraining.config import SETTINGS, PretrainConfig
from pretraining.data.loader import ViewStream, make_loader, steps_per_epoch
from pretraining.data.store import Store
from pretraining.errors import UserError
from pretraining.files import write_json
from pretraining.metrics import MetricsLog, plot_progress
from pretraining.pretrainer import Pretrainer

logger = logging.getLogger(__name__)

CHANGEABLE_ON_RESUME = ("device", "compile", "num_workers", "log_every")
"""Settings that do not change what is computed, so a run may go on with other values."""


def train(store_path: Path, output: Path, config: PretrainConfig) -> int:
    """Begin a run in ``output``, or go on with the one there (see `prepare_output`), until its end or a signal.

    Returns:
        0 when the run is finished, 128 + signal number when a signal stopped it.

    Raises:
        UserError: the store, the device or a checkpoint cannot be used.
    """
    store = Store.open(store_path)
    fingerprint = store.fingerprint()
    device = _device(config.run.device)
    stream = ViewStream(store, config)
    pretrainer = Pretrainer(config, steps_per_epoch(stream, config), device)
    checkpoint = output / CHECKPOINT
    if checkpoint.exists():
        load_checkpoint(checkpoint, pretrainer, fingerprint)
    _log_start(pretrainer, stream, output)
    metrics = MetricsLog(output / METRICS, pretrainer.step)
    with _stop_signals() as received:
        for _ in _run_epochs(pretrainer, stream, metrics, received):
            save_checkpoint(checkpoint, pretrainer, fingerprint)
            plot_progress(metrics.lines, config.model.head_out_dim, output / PROGRESS)
    if received:
        logger.info(
            "stopped by %s at step %d of %d; go on with: cads_pretrain %s %s --c",
            signal.Signals(received[0]).name, pretrainer.step, pretrainer.total_steps, store_path, output,
        )  # fmt: skip
        return 128 + received[0]
    encoder = output / ENCODER
    save_encoder(encoder, pretrainer.teacher.backbone.state_dict(), encoder_record(config, pretrainer.step))
    logger.info("encoder: %s\nfine-tune from it with: export nnUNet_cads_encoder=%s", encoder, encoder.absolute())
    return 0


def _run_epochs(pretrainer: Pretrainer, stream: ViewStream, metrics: MetricsLog, received: list[int]) -> Iterator[None]:
    """Take step after step; yield whenever the state should be saved: after each epoch and on a signal."""
    config, total = pretrainer.config, pretrainer.total_steps
    loader = make_loader(stream, config, pretrainer.step, total, pin_memory=pretrainer.device.type == "cuda")
    bar = tqdm(total=total, initial=pretrainer.step, unit="step", dynamic_ncols=True, mininterval=1.0, smoothing=0.1)
    since, steps_before = time.perf_counter(), pretrainer.step
    with bar:
        for views in loader:
            epoch = pretrainer.epoch
            metrics.add(pretrainer.train_step(*views))
            bar.update()
            done = pretrainer.step
            epoch_ended = done % pretrainer.steps_per_epoch == 0
            if done % config.run.log_every == 0 or epoch_ended or received:
                speed = (done - steps_before) * config.optim.batch_size / (time.perf_counter() - since)
                line = metrics.write(done - 1, epoch, samples_per_second=round(speed, 3))
                since, steps_before = time.perf_counter(), done
                bar.set_postfix_str(f"epoch {epoch + 1}, loss {line['loss']:.3f}, {speed:.1f} samples/s")
            if epoch_ended or received:
                yield
            if received:
                break


def prepare_output(output: Path, settings: dict[str, Any], store: Path, go_on: bool) -> PretrainConfig:
    """Make the folder of a new run and save its configuration, or read that of the run to go on with.

    Args:
        output: the run's folder.
        settings: settings given by preset and flags; only with `CHANGEABLE_ON_RESUME` may a run go on that differs.
        store: the store, checked before anything is written.
        go_on: ``--c``.

    Raises:
        UserError: a run is there already, there is none to go on with, or the settings differ from its own.
    """
    fingerprint = Store.open(store).fingerprint()
    path = output / CONFIG
    if not go_on:
        config = PretrainConfig().replace(**settings)
        _device(config.run.device)
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise UserError(f"{output}: exists already and is not empty; add --c to go on with the run in it, "
                            "or choose another folder")  # fmt: skip
        versions = {"package": __version__, "torch": torch.__version__}
        try:
            output.mkdir(parents=True, exist_ok=True)
            write_json(path, {**config.to_dict(), "versions": versions, "store": fingerprint})
        except OSError as error:
            raise UserError(f"{output}: cannot be written ({error.strerror}); choose another folder") from error
        return config
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        saved = PretrainConfig.from_dict({k: v for k, v in content.items() if k not in ("versions", "store")})
    except FileNotFoundError:
        raise UserError(f"{output}: there is no run to go on with; leave out --c to begin one") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it, or begin a new run in another folder") from error
    config = saved.replace(**settings)
    for name, (section, _) in SETTINGS.items():
        before, now = getattr(getattr(saved, section), name), getattr(getattr(config, section), name)
        if before != now and name not in CHANGEABLE_ON_RESUME:
            raise UserError(f"{output}: the run there has {name} = {before}, not {now}; leave the flag out to go on")
    return config


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device '{name}' cannot be used ({reason}); use cpu, cuda or auto") from error
    return device


def _log_start(pretrainer: Pretrainer, stream: ViewStream, output: Path) -> None:
    parameters = sum(p.numel() for p in pretrainer.student.parameters() if p.requires_grad)
    logger.info(
        "%s%d sub-volumes of %d volumes, %d steps of %d sub-volumes (%d epochs), %.1f M parameters, %s, %s",
        f"going on at step {pretrainer.step}: " if pretrainer.step else "",
        len(stream), len(stream.store.ids), pretrainer.total_steps, pretrainer.config.optim.batch_size,
        pretrainer.config.optim.epochs, parameters / 1e6, pretrainer.device, pretrainer.config.run.precision,
    )  # fmt: skip
    if pretrainer.device.type == "cpu" and pretrainer.config.run.precision == "bf16" and not _cpu_has_bf16():
        logger.warning("this CPU has no bf16 arithmetic: --precision float32 is many times faster here")
    logger.info("metrics: %s, curves: %s", output / METRICS, output / PROGRESS)


def _cpu_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM so that the running step can finish; a second one stops at once."""
    received: list[int] = []

    def remember(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        os.write(2, b"\nfinishing the running step, then saving\n")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
