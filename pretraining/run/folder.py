"""The folder of a run: made for a new one, or found as the run there left it. Locked against others either way."""

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from pretraining import __version__
from pretraining.config import SETTINGS, PretrainConfig
from pretraining.run.estimate import check_memory
from pretraining.store.store import Store
from pretraining.system.devices import choose_device
from pretraining.system.errors import UserError
from pretraining.system.files import is_leftover, remove_leftovers, write_json
from pretraining.system.lock import RUN_LOCK, run_lock
from pretraining.system.processes import ALONE, Processes

logger = logging.getLogger(__name__)

CONFIG = "config.json"
METRICS = "metrics.jsonl"
PROGRESS = "progress.png"
CHECKPOINT = "checkpoint_latest.pth"
ENCODER = "cads_encoder.pth"

CHANGEABLE_ON_RESUME = (
    "device", "compile", "accumulate", "num_workers", "log_every", "save_minutes", "max_hours", "on_nan"
)  # fmt: skip
"""Settings that do not change what is computed, so a run may go on with other values.

With batch normalisation in the heads, ``accumulate`` does: each part of a batch has statistics of its own.
"""


def prepare_output(
    output: Path, settings: dict[str, Any], store: Path, go_on: bool, held: ExitStack, processes: Processes = ALONE
) -> PretrainConfig:
    """Make the folder of a new run and save its configuration, or read that of the run to go on with.

    Either way the folder is locked against other runs.

    Args:
        output: the run's folder.
        settings: settings given by preset and flags; only with `CHANGEABLE_ON_RESUME` may a run go on that differs.
        store: the store, checked before anything is written.
        go_on: ``--c``.
        held: what gives the folder free at its end.
        processes: the processes of the run, among which its batches must be divisible.

    Raises:
        UserError: a run is there already or at work, there is none to go on with, its own settings differ, or they
            cannot work.
    """
    opened = Store.open(store)
    if go_on:
        return _go_on(output, settings, held, processes)
    return _begin(output, settings, opened.fingerprint(), held, processes)


def _begin(
    output: Path, settings: dict[str, Any], fingerprint: str, held: ExitStack, processes: Processes
) -> PretrainConfig:
    """Make the folder of a new run; `prepare_output` for the arguments."""
    config = PretrainConfig().replace(**settings)
    device = choose_device(config.run.device, processes)
    check_shares(config, processes)
    if device.type == "cpu":
        check_memory(config, processes)
    _check_is_empty(output)
    versions = {"package": __version__, "torch": torch.__version__}
    try:
        output.mkdir(parents=True, exist_ok=True)
        held.enter_context(run_lock(output))
        _check_is_empty(output)  # another run may have been and gone meanwhile
        remove_leftovers(output)
        write_json(output / CONFIG, {**config.to_dict(), "versions": versions, "store": fingerprint})
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); choose another folder") from error
    return config


def _go_on(output: Path, settings: dict[str, Any], held: ExitStack, processes: Processes) -> PretrainConfig:
    """Read the configuration of the run in the folder, check the changes to it; `prepare_output` for the arguments."""
    path = output / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        saved = PretrainConfig.from_dict({k: v for k, v in content.items() if k not in ("versions", "store")})
    except FileNotFoundError:
        raise UserError(f"{output}: there is no run to go on with; leave out --c to begin one") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); restore it, or begin a new run in another folder") from error
    config = saved.replace(**settings)
    for name, (section, _) in SETTINGS.items():
        before, now = getattr(getattr(saved, section), name), getattr(getattr(config, section), name)
        if before != now and name not in CHANGEABLE_ON_RESUME:
            raise UserError(f"{output}: the run there has {name} = {before}, not {now}; leave the flag out to go on")
    if config.run.accumulate != saved.run.accumulate and config.model.head_batch_norm:
        raise UserError(
            f"{output}: the run there has accumulate = {saved.run.accumulate}, not {config.run.accumulate}, and with "
            "head_batch_norm the parts of a batch change what is computed; leave the flag out to go on"
        )
    check_shares(config, processes)
    held.enter_context(run_lock(output))
    remove_leftovers(output)
    if not (output / CHECKPOINT).exists():
        logger.warning("%s: holds no checkpoint yet, so the run begins anew", output)
    return config


def saved_device(output: Path) -> str:
    """The device that the run in ``output`` was begun with; "auto" where its config.json does not tell.

    `prepare_output` says what is wrong with that file; but first the processes must join, which depends on the device.
    """
    try:
        return str(json.loads((output / CONFIG).read_text(encoding="utf-8"))["run"]["device"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "auto"


def _check_is_empty(output: Path) -> None:
    """Raise `UserError` where a new run's folder holds anything but its lock and what a killed run left."""
    files = output.iterdir() if output.is_dir() else [output] if output.exists() else []
    if any(not file.name.startswith(RUN_LOCK) and not is_leftover(file) for file in files):
        raise UserError(f"{output}: exists already and is not empty; add --c to go on with the run in it, "
                        "or choose another folder")  # fmt: skip


def check_shares(config: PretrainConfig, processes: Processes) -> None:
    """Raise `UserError` unless every process can take its batch in equal parts."""
    size, accumulate = processes.size, config.run.accumulate
    parts = size * accumulate
    if config.optim.batch_size % parts:
        among = f"{size} processes" * (size > 1) + " with " * (size > 1 < accumulate)
        among += f"--accumulate {accumulate}" * (accumulate > 1)
        raise UserError(
            f"batch_size {config.optim.batch_size} cannot be divided by {among}; choose a multiple of {parts}"
        )
