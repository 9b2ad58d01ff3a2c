"""The files of a run: what is in them, how they are written and how they are read back.

    OUTPUT/
      config.json              resolved configuration, versions, the store's fingerprint
      metrics.jsonl            one line per `log_every` steps
      progress.png             their curves
      checkpoint_latest.pth    everything needed to go on
      cads_encoder.pth         the teacher's encoder, at the end of the run

`checkpoint_latest.pth` has the published keys (``teacher``: ``backbone.*``, ``head.*``), so that `cads_export` reads
it like the published file. All files load with ``weights_only=True``.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_cads.network_architecture.encoder_checkpoint import BACKBONE_PREFIX, RECORD, TEACHER
from pretraining import __version__
from pretraining.config import PretrainConfig
from pretraining.data.store import CLIP_HU, SPACING_MM
from pretraining.data.views import HU_SCALE
from pretraining.errors import UserError
from pretraining.files import atomic_path
from pretraining.pretrainer import Pretrainer

CONFIG = "config.json"
METRICS = "metrics.jsonl"
PROGRESS = "progress.png"
CHECKPOINT = "checkpoint_latest.pth"
ENCODER = "cads_encoder.pth"

FORMAT_VERSION = 1
_RUN = "run"


def save_checkpoint(path: Path, pretrainer: Pretrainer, store_fingerprint: str) -> None:
    """Write everything needed to go on, atomically: the previous checkpoint stays until this one is complete."""
    run = {
        "format_version": FORMAT_VERSION,
        "config": pretrainer.config.to_dict(),
        "store": store_fingerprint,
        "steps_per_epoch": pretrainer.steps_per_epoch,
        "package_version": __version__,
    }
    _save(path, {**pretrainer.state_dict(), _RUN: run, RECORD: encoder_record(pretrainer.config, pretrainer.step)})


def load_checkpoint(path: Path, pretrainer: Pretrainer, store_fingerprint: str) -> None:
    """Bring ``pretrainer`` to the state that was saved.

    Raises:
        UserError: the file is not a checkpoint of a run, of another format, or of another store.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        run = content[_RUN]
        if run["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{path}: checkpoint format {run['format_version']}, but this program reads {FORMAT_VERSION}; "
                "go on with the version of the program that wrote it"
            )
        if run["store"] != store_fingerprint:
            raise UserError(
                f"{path}: this run was made with another store (or the store has changed since); "
                "give the store it began with, or begin a new run in another folder"
            )
        if run["steps_per_epoch"] != pretrainer.steps_per_epoch:
            raise UserError(
                f"{path}: {run['steps_per_epoch']} steps per epoch, but the configuration now gives "
                f"{pretrainer.steps_per_epoch}; restore the run's config.json"
            )
        pretrainer.load_state_dict(content)
    except UserError:
        raise
    except Exception as error:  # torch.load and damaged contents raise types of all kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{path}: cannot go on from this file ({reason}); remove it to begin this run anew") from error


def encoder_record(config: PretrainConfig, steps: int) -> dict[str, Any]:
    """What whoever uses the encoder must know of its pre-training."""
    return {
        "format_version": FORMAT_VERSION,
        "architecture": "PVTv2-b1",
        "axes": "zyx",
        "crop_size": list(config.view.crop_size),
        "spacing_mm": [SPACING_MM] * 3,
        "clip_hu": list(CLIP_HU),
        "intensity_scale_hu": HU_SCALE,
        "steps": steps,
        "batch_size": config.optim.batch_size,
        "package_version": __version__,
    }


def save_encoder(path: Path, encoder_state: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write an encoder (keys without prefix) as ``cads_encoder.pth``, atomically.

    ``record`` is stored beside it; empty for weights of unknown origin.
    """
    teacher = {BACKBONE_PREFIX + key: value.detach().cpu().contiguous() for key, value in encoder_state.items()}
    _save(path, {TEACHER: teacher, RECORD: record})


def _save(path: Path, content: dict[str, Any]) -> None:
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be written ({reason}); free space or check permissions, then go on with --c"
        ) from error
