"""The files of a run: what is in them, how they are written and how they are read back.

    OUTPUT/
      config.json              resolved configuration, versions, the store's fingerprint
      metrics.jsonl            one line per `log_every` steps
      progress.png             their curves
      restored.png             of a run that restores crops: seen, restored, truth
      points.png               of a run that contrasts points: where each level finds a point in the other crop
      checkpoint_latest.pth    everything needed to resume
      cads_encoder.pth         the teacher's encoder, at the end of the run

`checkpoint_latest.pth` has the published keys (``teacher``: ``backbone.*``, ``head.*``), so that `cads_export` reads
it like the published file. All files load with ``weights_only=True``, and their checksums are compared first.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_cads.encoder_file import RECORD
from nnunetv2_cads.encoder_file.record import PRETRAINING, EncoderRecord
from nnunetv2_cads.encoder_file.safe_loading import CheckpointFileError, check_tensor, load_archive
from nnunetv2_cads.encoder_file.write import OURS, write_encoder_file
from pretraining import __version__
from pretraining.config import PretrainConfig
from pretraining.method.optimisation import GROUP_SETTINGS
from pretraining.method.pretrainer import Pretrainer
from pretraining.store.store import StoreSummary
from pretraining.system.errors import UserError, environment_error, is_environment_error
from pretraining.system.files import atomic_path

FORMAT_VERSION = 1
_RUN = "run"


def save_checkpoint(path: Path, pretrainer: Pretrainer, store: StoreSummary) -> None:
    """Write everything needed to resume, atomically: the previous checkpoint stays until this one is complete."""
    run = {
        "format_version": FORMAT_VERSION,
        "config": pretrainer.config.to_dict(),
        "store": store.fingerprint,
        "steps_per_epoch": pretrainer.steps_per_epoch,
        "package_version": __version__,
    }
    record = encoder_record(pretrainer.config, pretrainer.step, store.spacing_mm)
    _save(path, {**pretrainer.state_dict(), _RUN: run, RECORD: record.to_file()})


def load_checkpoint(path: Path, pretrainer: Pretrainer, store: StoreSummary) -> None:
    """Bring ``pretrainer`` to the state that was saved.

    Raises:
        UserError: the file is damaged, hostile, no checkpoint of a run, of another format, or of another store.
    """
    try:
        content = load_archive(path)
        run = content[_RUN]
        if run["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{path}: checkpoint format {run['format_version']}, but this program reads {FORMAT_VERSION}; "
                "resume with the version of the program that wrote it"
            )
        if run["store"] != store.fingerprint:
            raise UserError(
                f"{path}: this run was begun with another store (or the store has changed since); "
                "give the store it was begun with, or begin a new run in another folder"
            )
        if run["steps_per_epoch"] != pretrainer.steps_per_epoch:
            raise UserError(
                f"{path}: {run['steps_per_epoch']} steps per epoch, but the configuration now gives "
                f"{pretrainer.steps_per_epoch}; restore the run's config.json"
            )
        check_run_state(content, pretrainer)
        pretrainer.load_state_dict(content)
    except UserError:
        raise
    except CheckpointFileError as error:
        raise UserError(
            f"{path}: cannot resume from this file: it {error}; restore a copy, or remove it to start this run over"
        ) from error
    except Exception as error:  # contents of all kinds raise types of all kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"{path}: cannot resume from this file: it is no checkpoint of a run ({type(error).__name__}: {reason}); "
            "restore a copy, or remove it to start this run over"
        ) from error


def resume_from(path: Path, pretrainer: Pretrainer, store: StoreSummary) -> None:
    """Bring all ranks to the state of the checkpoint, where there is one.

    Raises:
        UserError: it cannot be used, or the ranks did not find the same one.
    """
    processes = pretrainer.processes
    processes.on_all_ranks(lambda: load_checkpoint(path, pretrainer, store) if path.exists() else None)
    first, last = processes.min_over_ranks(pretrainer.step), processes.max_over_ranks(pretrainer.step)
    if first == last:
        return
    raise UserError(
        f"{path}: the ranks found it at different steps, from {first} to {last}, so the file system shows some of them "
        "an old state; wait a minute and start again"
        if processes.is_rank0
        else ""
    )


def encoder_record(config: PretrainConfig, steps: int, spacing_mm: float) -> EncoderRecord:
    """What whoever uses the encoder must know of its pre-training."""
    low, high = map(_short, config.view.intensity_window)
    saw = dataclasses.replace(
        PRETRAINING,
        architecture=f"PVTv2-{config.model.encoder_size}",
        spacing_mm=(spacing_mm,) * 3,
        clip_hu=(low, high),
        intensity_center_hu=_short((low + high) / 2),
        intensity_scale_hu=_short((high - low) / 2),
    )
    sizes = {"crop_size": list(config.view.crop_size)} if config.distils else {}
    sizes |= {"restored_crop_size": list(config.restoration.restored_crop_size)} if config.restores else {}
    sizes |= {"point_crop_size": list(config.point.point_crop_size)} if config.has_points else {}
    return saw.with_notes(
        **sizes,
        steps=steps,
        batch_size=config.optim.batch_size,
        package_version=__version__,
    )


def _short(value: float) -> int | float:
    """A whole number without its point: it is shown to people."""
    return int(value) if float(value).is_integer() else value


def save_encoder(path: Path, encoder_state: dict[str, Tensor], record: EncoderRecord, layout: str = OURS) -> None:
    """Write an encoder file (keys without prefix), ``.pth`` or ``.safetensors`` by its suffix, atomically."""
    _write(path, lambda temporary: write_encoder_file(temporary, encoder_state, record, path.suffix, layout), "")


def _save(path: Path, content: dict[str, Any]) -> None:
    def save(temporary: Path) -> None:
        try:
            with temporary.open("wb") as file:  # given a path, torch would hide that the disk is full
                torch.save(content, file)
        except RuntimeError as error:  # torch's own, while it closes the file after the disk's error
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    _write(path, save, ", then resume with --c")


def _write(path: Path, write: Callable[[Path], None], after: str) -> None:
    """Write a file atomically; ``after`` is what to do beyond what the error asks for."""
    try:
        with atomic_path(path) as temporary:
            write(temporary)
    except OSError as error:
        if not is_environment_error(error):
            raise
        raise environment_error(error, path, after) from error


_MOMENTS = {"exp_avg", "exp_avg_sq"}


def check_run_state(state: Mapping[str, Any], pretrainer: Pretrainer) -> None:
    """Raise `CheckpointFileError` unless every tensor is there with the name, type and shape that the run has.

    PyTorch's own loading compares names and shapes of weights, but converts types, and looks at nothing in an
    optimizer.
    """
    for part in ("student", "teacher"):
        _compare(part, state[part], getattr(pretrainer, part).state_dict())
    _compare("center", {"": state["center"]}, {"": pretrainer.center})
    step = state["step"]
    if type(step) is not int or not 0 <= step <= pretrainer.total_steps:
        raise CheckpointFileError(f"has step {step!r:.40}, but the run has {pretrainer.total_steps}")
    _check_optimizer(state["optimizer"], pretrainer.optimizer)
    if any(type(value) not in (int, float) for value in state["scaler"].values()):
        raise CheckpointFileError("has a loss scaler that holds more than numbers")


def _check_optimizer(state: Mapping[str, Any], own: torch.optim.Optimizer) -> None:
    """AdamW's groups, and its two moments and step for each weight that it has updated."""
    groups, expected = state["param_groups"], own.state_dict()["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in expected]:
        raise CheckpointFileError("has other groups of weights in 'optimizer'")
    for group in groups:
        if not group.keys() >= set(GROUP_SETTINGS) or any(isinstance(value, Tensor) for value in group.values()):
            raise CheckpointFileError("has other settings in 'optimizer'")
    weights = [weight for group in own.param_groups for weight in group["params"]]
    for index, entry in state["state"].items():
        moments = dict.fromkeys(_MOMENTS, weights[index]) | {"step": torch.zeros(())}
        _compare(f"optimizer {index}", entry, moments)


def _compare(part: str, found: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Names, types and shapes of one part of the state."""
    if found.keys() != expected.keys():
        names = sorted(map(str, found.keys() ^ expected.keys()))
        raise CheckpointFileError(f"has missing or unexpected entries in '{part}' (first: {names[0][:80]})")
    for key, own in expected.items():
        name = f"{part} {key}".strip()
        value = _tensor(name, found[key], own)
        if value.shape != own.shape or value.dtype != own.dtype:
            raise CheckpointFileError(
                f"has {value.dtype} {tuple(value.shape)} under '{name}', the run has {own.dtype} {tuple(own.shape)}"
            )


def _tensor(name: str, value: Any, own: Tensor) -> Tensor:
    """The checked tensor; counters, which are whole numbers, have no NaN to look for."""
    if own.is_floating_point():
        return check_tensor(name, value)
    if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu":
        raise CheckpointFileError(f"has no ordinary tensor under '{name}'")
    return value
