"""Batches of views for a whole run, in an order that depends on the seed and the step alone.

Ours. A run is one endless stream of samples: pass after pass over all sub-volumes, each pass in its own random order.
Where an epoch is one pass, what does not fill a batch at the end of a pass is left out. Sample n is always the same
views of the same sub-volume, so a run that resumes at step s sees what an unbroken run sees, whatever the number of
workers.
"""

import math
import signal
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pretraining.config import PretrainConfig
from pretraining.store.store import Store
from pretraining.system.errors import UserError
from pretraining.system.machine import MAX_DEFAULT_PROCESSES, available_memory, core_count
from pretraining.system.processes import SINGLE_PROCESS, Processes
from pretraining.views.batches import ReadFailure, collate
from pretraining.views.corrupted_crops import Crop, make_crop
from pretraining.views.make_views import Views, make_views
from pretraining.views.point_pairs import PointPair, make_point_pair
from pretraining.views.streams import Stream, generator
from pretraining.views.subvolumes import SubVolumes

PREFETCH = 4
"""Batches that each worker prepares ahead."""
WORKER_BYTES = 300 * 2**20
"""Memory of a worker before it holds any view."""


class Sample(NamedTuple):
    """What a step sees of one sub-volume; with a first axis B, of a batch. What a run does not use is None."""

    view_1: Tensor | None  # (1, D, H, W)
    view_2: Tensor | None  # (1, D, H, W)
    xray: Tensor | None  # (1, H, W)
    crop: Crop | None
    pair: PointPair | None


class ViewStream(Dataset):
    """The endless stream of samples: number n, from 0 -> (CT view 1, CT view 2, X-ray view, crop, pair of crops).

    Args:
        store: the store to read.
        config: views and seed.

    Attributes:
        subvolumes: of the store.
        samples_per_pass: samples after which the sub-volumes come in a new order.
    """

    def __init__(self, store: Store, config: PretrainConfig) -> None:
        self.store, self.config, self.seed = store, config, config.run.seed
        self.subvolumes = SubVolumes(store, config.view)
        self.samples_per_pass = len(self.subvolumes)
        if not config.run.epoch_samples and self.samples_per_pass >= config.optim.batch_size:
            self.samples_per_pass -= self.samples_per_pass % config.optim.batch_size  # whole batches
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))  # of the pass with that number

    def __getitem__(self, n: int) -> Sample:
        """Sample n; what the run does not use is None."""
        return Sample(
            *(self.views(n) if self.config.distils else (None, None, None)),
            self.crop(n) if self.config.restores else None,
            self.pair(n) if self.config.has_points else None,
        )

    def views(self, n: int) -> Views:
        """The views of sample n."""
        rng = generator(self.seed, Stream.VIEWS, n)
        return make_views(self.store, self.subvolumes[self.subvolume_index(n)], self.config.view, rng)

    def crop(self, n: int) -> Crop:
        """The crop to restore of sample n."""
        rng = generator(self.seed, Stream.CROPS, n)
        return make_crop(self.store, self.subvolumes[self.subvolume_index(n)], self.config, rng)

    def pair(self, n: int) -> PointPair:
        """The pair of crops of sample n."""
        rng = generator(self.seed, Stream.PAIRS, n)
        return make_point_pair(self.store, self.subvolumes[self.subvolume_index(n)], self.config, rng)

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample] | ReadFailure:
        """The samples of a batch, or why one of them could not be read."""
        try:
            return [self[n] for n in numbers]
        except UserError as error:
            return ReadFailure(str(error))

    def subvolume_index(self, n: int) -> int:
        """Which of the sub-volumes sample n shows."""
        number, place = divmod(n, self.samples_per_pass)
        if self._order[0] != number:
            self._order = number, generator(self.seed, Stream.ORDER, number).permutation(len(self.subvolumes))
        return int(self._order[1][place])


def sample_numbers(step: int, batch_size: int, processes: Processes = SINGLE_PROCESS) -> range:
    """The numbers of this rank's samples of a step."""
    rank_batch_size = batch_size // processes.world_size
    first = step * batch_size + processes.rank * rank_batch_size
    return range(first, first + rank_batch_size)


def steps_per_epoch(stream: ViewStream, config: PretrainConfig) -> int:
    """Steps of an epoch: as many batches as hold ``epoch_samples``, or as one pass over the sub-volumes fills."""
    if config.run.epoch_samples:
        return -(-config.run.epoch_samples // config.optim.batch_size)
    return max(1, len(stream.subvolumes) // config.optim.batch_size)


def make_loader(
    stream: ViewStream,
    config: PretrainConfig,
    first_step: int,
    total_steps: int,
    device: torch.device,
    processes: Processes = SINGLE_PROCESS,
) -> DataLoader:
    """Loader of the remaining steps of a run, for `batches`: the parts of a `Sample`, with a batch axis each."""
    batch_size, workers = config.optim.batch_size, config.run.num_workers
    if workers < 0 and device.type == "cpu":  # training itself takes all cores, and one worker keeps up with it
        workers = 1
    elif workers < 0:
        workers = default_workers(batch_size // processes.world_size, config, processes.local_world_size)
    return DataLoader(
        stream,
        batch_sampler=[sample_numbers(s, batch_size, processes) for s in range(first_step, total_steps)],
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
        prefetch_factor=PREFETCH if workers else None,
        generator=torch.Generator(),  # so that making an iterator leaves the global generator alone
    )


def default_workers(rank_batch_size: int, config: PretrainConfig, local_world_size: int) -> int:
    """Workers of one rank: as many as its part of the machine's cores and of half the free memory allow, at most 8.

    Args:
        rank_batch_size: samples of a step that this rank takes.
        config: size of views, crops and pairs.
        local_world_size: ranks on this machine.
    """
    views = 2 * math.prod(config.view.crop_size) + math.prod(config.view.crop_size[1:]) if config.distils else 0
    crops = 3 * math.prod(config.restoration.restored_crop_size) if config.restores else 0
    pairs = 2 * math.prod(config.point.point_crop_size) if config.has_points else 0
    worker_bytes = WORKER_BYTES + PREFETCH * rank_batch_size * (views + crops + pairs) * 4
    by_memory = available_memory() // 2 // worker_bytes
    return max(1, min(core_count() // local_world_size, by_memory // local_world_size, MAX_DEFAULT_PROCESSES))


def _start_worker(_: int) -> None:
    """One thread; signals to the whole process group are left to the training process.

    torchrun and `timeout` signal the group. A worker that ended of it would cost the checkpoint; one whose training
    process is gone ends by itself.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
