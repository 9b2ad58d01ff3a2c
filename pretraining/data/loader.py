"""Batches of views for a whole run, in an order that depends on the seed and the step alone.

Ours. A run is one long stream of samples: pass after pass over all sub-volumes, each pass in its own random order.
Sample n always is the same views of the same sub-volume, so a run that goes on at step s sees what an unbroken run
sees, whatever the number of workers.
"""

import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pretraining.config import PretrainConfig
from pretraining.data.cores import default_processes
from pretraining.data.store import Store
from pretraining.data.subvolumes import list_subvolumes
from pretraining.data.views import make_views, xray_view


class ViewStream(Dataset):
    """The stream of samples: index n (without end) -> (CT view 1, CT view 2, X-ray view).

    Args:
        store: the store to read.
        config: views and seed.
    """

    def __init__(self, store: Store, config: PretrainConfig) -> None:
        self.store, self.view_config, self.seed = store, config.view, config.run.seed
        self.subvolumes = list_subvolumes(store, config.view)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))
        self._xrays: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Sub-volumes in one pass."""
        return len(self.subvolumes)

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views (1, D, H, W), (1, D, H, W) and (1, H, W) of sample n."""
        passes, position = divmod(n, len(self.subvolumes))
        if self._order[0] != passes:
            self._order = passes, np.random.default_rng((self.seed, 0, passes)).permutation(len(self.subvolumes))
        subvolume = self.subvolumes[self._order[1][position]]
        rng = np.random.default_rng((self.seed, 1, n))
        return *make_views(self.store, subvolume, self.view_config, rng), self._xray(subvolume.volume_id)

    def _xray(self, volume_id: str) -> Tensor:
        if volume_id not in self._xrays:  # 36 kB each, read once per worker
            self._xrays[volume_id] = xray_view(self.store.radiograph(volume_id), self.view_config.crop_size[1:])
        return self._xrays[volume_id]


class StepSampler(Sampler[list[int]]):
    """The sample numbers of each step from ``first_step`` up to ``total_steps``."""

    def __init__(self, batch_size: int, first_step: int, total_steps: int) -> None:
        self.batch_size, self.first_step, self.total_steps = batch_size, first_step, total_steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first_step, self.total_steps):
            yield list(range(step * self.batch_size, (step + 1) * self.batch_size))

    def __len__(self) -> int:
        return self.total_steps - self.first_step


def steps_per_epoch(stream: ViewStream, config: PretrainConfig) -> int:
    """Steps of an epoch: as many batches as hold ``epoch_samples``, or every sub-volume once."""
    samples = config.run.epoch_samples or len(stream)
    return -(-samples // config.optim.batch_size)


def make_loader(
    stream: ViewStream, config: PretrainConfig, first_step: int, total_steps: int, pin_memory: bool
) -> DataLoader:
    """Loader of the remaining steps of a run; yields (CT view 1, CT view 2, X-ray) with a batch axis each."""
    workers = config.run.num_workers if config.run.num_workers >= 0 else default_processes()
    return DataLoader(
        stream,
        batch_sampler=StepSampler(config.optim.batch_size, first_step, total_steps),
        num_workers=workers,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # so that making an iterator leaves the global generator alone
    )


def _start_worker(_: int) -> None:
    """One thread per worker, and Ctrl-C is for the main process to answer."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
