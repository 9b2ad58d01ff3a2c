"""The loop of plain CADS: a store in, an encoder file out. ``cads_pretrain --plain`` runs it."""

import dataclasses
import json
import logging
import os
import random
import shlex
import time
from pathlib import Path

import numpy as np
import torch

from nnunetv2_cads.encoder_file.record import PRETRAINING
from nnunetv2_cads.encoder_file.write import write_encoder_file
from pretraining import __version__
from pretraining.config import PretrainConfig
from pretraining.plain.loader import batches, list_subvolumes
from pretraining.plain.step import PlainTrainer
from pretraining.store.store import Store
from pretraining.system.errors import UserError
from pretraining.system.files import atomic_path

logger = logging.getLogger(__name__)

NOT_HERE = (
    "encoder_size", "intensity_window", "random_window_probability", "xray", "distillation_weight",
    "restoration_weight", "point_weight", "xray_weight", "stage_weights", "amp", "accumulate", "compile", "on_nan",
    "save_minutes", "max_hours",
)  # fmt: skip
"""Settings that plain CADS does not have. (``num_workers`` and ``log_every`` change no result and are not used.)"""


def train_plain(store: Path, output: Path, config: PretrainConfig) -> int:
    """Train plain CADS on a store; write config.json, metrics.jsonl (a line per epoch) and cads_encoder.pth.

    Returns:
        0.

    Raises:
        UserError: the store, the device or the folder cannot be used, plain CADS lacks a setting, or the loss is NaN.
    """
    check_supported(config)
    opened, device = Store.open(store), choose_device(config.run.device)
    batch_size, subvolumes = config.optim.batch_size, len(list_subvolumes(opened, config.view))
    steps_per_epoch = max(1, subvolumes // batch_size)
    if config.run.epoch_samples:
        steps_per_epoch = -(-config.run.epoch_samples // batch_size)
    make_folder(output, opened, config)
    np.random.seed(config.run.seed)  # noqa: NPY002  (what batchgenerators draws from)
    random.seed(config.run.seed)
    trainer, views = PlainTrainer(config, steps_per_epoch, device), batches(opened, config)
    logger.info(
        "plain CADS, for comparison: about three times slower than without --plain, and it cannot be resumed\n"
        "%d sub-volumes, %d epochs of %d steps of %d sub-volumes, on %s",
        subvolumes, config.optim.epochs, steps_per_epoch, batch_size, device,
    )  # fmt: skip
    for epoch in range(config.optim.epochs):
        started = time.perf_counter()
        losses = np.mean([trainer.train_step(*next(views)) for _ in range(steps_per_epoch)], axis=0)
        speed = steps_per_epoch * batch_size / (time.perf_counter() - started)
        if not np.isfinite(losses).all():
            raise UserError(f"epoch {epoch + 1}: the loss is not finite (NaN or infinity); give a lower --lr")
        line = {"step": trainer.step - 1, "epoch": epoch, "loss": losses.mean()}
        line |= {f"loss_stage{stage}": loss for stage, loss in enumerate(losses, 1)}
        line |= {"samples_per_second": round(speed, 3)}
        with (output / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        logger.info("epoch %d: loss %.3f, %.1f samples/s", epoch + 1, line["loss"], speed)
    save_encoder(output / "cads_encoder.pth", trainer, opened.spacing_mm)
    return 0


def check_supported(config: PretrainConfig) -> None:
    """Refuse settings that plain CADS does not have, and several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--plain trains in one process: start it without torchrun")
    if not config.distils:
        raise UserError("--plain is CADS itself: give --preset published or cads, and no --distillation-weight 0")
    settings, defaults = ({k: v for part in dataclasses.asdict(c).values() for k, v in part.items()}
                          for c in (config, PretrainConfig()))  # fmt: skip
    for name in NOT_HERE:
        if settings[name] != defaults[name]:
            flag, default = "--" + name.replace("_", "-"), defaults[name]
            words = " ".join(map(str, default)) if isinstance(default, tuple) else default
            raise UserError(f"--plain has no {flag}; leave it out, or give its default ({flag} {words})")


def choose_device(name: str) -> torch.device:
    """The device that a setting names."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError):
        raise UserError(f"device '{name}' cannot be used; use cpu, cuda or auto") from None


def make_folder(output: Path, store: Store, config: PretrainConfig) -> None:
    """Make a new folder for the run, with its configuration."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()):
            raise UserError(f"{output}: exists already and is not empty; choose another folder")
        content = {**config.to_dict(), "store": store.fingerprint(), "plain": {"package_version": __version__}}
        (output / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); choose another folder") from error


def save_encoder(path: Path, trainer: PlainTrainer, spacing_mm: float) -> None:
    """Write the teacher's encoder, as fine-tuning takes it."""
    config = trainer.config
    record = dataclasses.replace(PRETRAINING, spacing_mm=(spacing_mm,) * 3).with_notes(
        crop_size=list(config.view.crop_size),
        steps=trainer.step,
        batch_size=config.optim.batch_size,
        package_version=__version__,
    )
    with atomic_path(path) as temporary:
        write_encoder_file(temporary, trainer.teacher.backbone.state_dict(), record, path.suffix)
    quoted = shlex.quote(str(path.absolute()))
    logger.info("encoder: %s\nfine-tune from it with: export nnUNet_cads_encoder=%s", path, quoted)
