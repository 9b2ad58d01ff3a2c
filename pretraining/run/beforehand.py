"""What a run reports before its first step: its length, its room on the disk, its hours on a CPU, and what is odd."""

import logging
import shutil
from pathlib import Path

import numpy as np
import torch

from pretraining.method.pretrainer import Pretrainer
from pretraining.run.estimate import duration, predicted_seconds
from pretraining.run.folder import CHECKPOINT, METRICS, PROGRESS
from pretraining.store.store import Store, radiograph_path, volume_path
from pretraining.views.loader import ViewStream

SMALL_BATCH = 64
"""Below it, CADS has collapsed in our trials unless its heads have batch norm."""
LONG_HOURS = 24
"""On a CPU; a longer run is warned about. Chosen."""
OTHER_FILES_BYTES = 10_000_000
"""Room for pictures and metrics of a run; chosen."""
VOLUMES_LOOKED_AT = 1000
"""Of a store at most, to know its size: looking at a file of a file server takes a while."""

logger = logging.getLogger(__name__)


def report_start(pretrainer: Pretrainer, stream: ViewStream, output: Path) -> None:
    """Log it, as rank 0."""
    if not pretrainer.processes.is_rank0:
        return
    config, size, device = pretrainer.config, pretrainer.processes.world_size, pretrainer.device
    logger.info(
        "%s%d sub-volumes of %d volumes, %d steps of %d sub-volumes (%d epochs), %.1f M parameters, %s, %s",
        f"resuming at step {pretrainer.step}: " if pretrainer.step else "",
        len(stream.subvolumes), len(stream.store.ids), pretrainer.total_steps, config.optim.batch_size,
        config.optim.epochs, sum(p.numel() for p in pretrainer.student.parameters() if p.requires_grad) / 1e6,
        f"{size} processes on {device.type}" if size > 1 else device,
        "float32" if config.run.amp == "none" else config.run.amp,
    )  # fmt: skip
    _report_disk(pretrainer, stream.store, output)
    if device.type == "cpu" and size == 1 and not config.run.compile and pretrainer.step < pretrainer.total_steps:
        _report_hours(pretrainer)
    _report_small_store(pretrainer, stream)
    if config.distils and config.optim.batch_size < SMALL_BATCH and not config.model.head_batch_norm:
        logger.warning(
            "warning: CADS with batches of %d and no batch norm in its heads has collapsed in our trials; --preset "
            "cads has --head-batch-norm and --head-out-dim 512 for small batches",
            config.optim.batch_size,
        )
    if device.type == "cpu" and config.run.amp == "bf16" and not _cpu_has_bf16():
        logger.warning("this CPU has no bf16 arithmetic: --amp none is many times faster here")
    logger.info("metrics: %s, curves: %s", output / METRICS, output / PROGRESS)


def checkpoint_bytes(pretrainer: Pretrainer) -> int:
    """Size of a checkpoint: the weights of student and teacher, and AdamW's two moments of what is trained."""
    weights = [*pretrainer.student.state_dict().values(), *pretrainer.teacher.state_dict().values(), pretrainer.center]
    trained = [p for group in pretrainer.optimizer.param_groups for p in group["params"]]
    return sum(tensor.nbytes for tensor in weights) + 2 * sum(tensor.nbytes for tensor in trained)


def encoder_bytes(pretrainer: Pretrainer) -> int:
    """Size of the encoder file."""
    return sum(tensor.nbytes for tensor in pretrainer.teacher.backbone.state_dict().values())


def store_bytes(store: Store) -> int:
    """Size of a store's volumes and radiographs; of a large one about, from volumes evenly spread over its names."""
    step = -(-len(store.ids) // VOLUMES_LOOKED_AT)
    looked_at = store.ids[::step]
    sizes = [
        path_of(store.path, name).stat().st_size for name in looked_at for path_of in (volume_path, radiograph_path)
    ]
    return round(sum(sizes) * len(store.ids) / len(looked_at))


def _report_disk(pretrainer: Pretrainer, store: Store, output: Path) -> None:
    checkpoint, encoder = checkpoint_bytes(pretrainer), encoder_bytes(pretrainer)
    free = shutil.disk_usage(output).free
    logger.info(
        "on the disk: checkpoint %s, encoder file %s, store %s; %s: %s free",
        *map(_size, (checkpoint, encoder, store_bytes(store))), output, _size(free),
    )  # fmt: skip
    # a checkpoint is written beside the one before it
    needed = (1 if (output / CHECKPOINT).exists() else 2) * checkpoint + encoder + OTHER_FILES_BYTES
    if free < needed:
        logger.warning(
            "warning: %s: %s are free, but the run needs %s, its checkpoint twice while a new one is written; make "
            "room, or it will stop at a full disk",
            output, _size(free), _size(needed),
        )  # fmt: skip


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _report_hours(pretrainer: Pretrainer) -> None:
    seconds = predicted_seconds(pretrainer)
    logger.info("on this CPU: about %s, judged by one sub-volume", duration(seconds))
    if seconds > 3600 * LONG_HOURS:
        logger.warning(
            "warning: that is %.0f days; the presets small and published are for GPUs, demo (contrast of points) and "
            "cads (CADS) for a CPU; a lower --epochs or --epoch-samples shortens the run",
            np.ceil(seconds / 86400),
        )


def _report_small_store(pretrainer: Pretrainer, stream: ViewStream) -> None:
    count, batch, steps = len(stream.subvolumes), pretrainer.config.optim.batch_size, pretrainer.steps_per_epoch
    if count < batch:
        logger.warning(
            "warning: the store has %d sub-volumes and a batch takes %d, so each batch shows some of them more than "
            "once, in other views, and an epoch is %s; add scans, or give a lower --batch-size",
            count, batch, "one batch" if steps == 1 else f"{steps} batches",
        )  # fmt: skip


def _cpu_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
