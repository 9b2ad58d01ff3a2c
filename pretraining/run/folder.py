"""The folder of a run: made for a new one, or found as the run there left it. Locked against others either way."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from pretraining import __version__
from pretraining.config import PretrainConfig
from pretraining.run.estimate import check_memory
from pretraining.store.store import StoreSummary
from pretraining.system.errors import UserError
from pretraining.system.files import is_leftover, remove_leftovers, write_json
from pretraining.system.lock import RUN_LOCK, run_lock
from pretraining.system.processes import SINGLE_PROCESS, Processes

logger = logging.getLogger(__name__)

CONFIG = "config.json"
METRICS = "metrics.jsonl"
PROGRESS = "progress.png"
CHECKPOINT = "checkpoint_latest.pth"
RESTORED = "restored.png"
POINTS = "points.png"
ENCODER = "cads_encoder.pth"

NO_SETTINGS = ("versions", "store", "spacing_mm")
"""What config.json says beside the settings: with which versions, and on which store, the run was begun."""

CHANGEABLE_ON_RESUME = (
    "device", "compile", "accumulate", "num_workers", "log_every", "save_minutes", "max_hours", "on_nan"
)  # fmt: skip
"""Settings that do not change what is computed, so a run may resume with other values.

With batch normalisation in the heads, ``accumulate`` does: each part of a batch has statistics of its own.
"""


class RunFolder:
    """The folder of a run that is to begin or to resume; its config.json is read here, once.

    Args:
        path: the folder.
        settings: settings given by the caller. Those of a new run that are missing are the published ones; a run that
            resumes keeps its own, and only `CHANGEABLE_ON_RESUME` may differ from them.
        resume: ``--c``; a run begins where there is none.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.path, self.settings, self.resume = path, settings, resume
        self._saved: str | None = None
        if resume:
            with suppress(FileNotFoundError, NotADirectoryError):
                self._saved = (path / CONFIG).read_text(encoding="utf-8", errors="replace")

    @property
    def device(self) -> str:
        """The device's setting: given, or that of the run; "auto" where config.json does not tell.

        What is wrong with that file is reported by `open`; but first the ranks must join, which depends on the device.
        """
        try:
            return self.settings.get("device") or str(json.loads(self._saved or "{}")["run"]["device"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return "auto"

    @contextmanager
    def open(
        self, store: StoreSummary, device: torch.device, processes: Processes = SINGLE_PROCESS
    ) -> Iterator[PretrainConfig]:
        """Hold the folder of a new run, with its configuration saved, or of the run to resume, as rank 0.

        Args:
            store: which store.
            device: of the run.
            processes: its ranks, among which its batches must be divisible.

        Raises:
            UserError: a run is there already or at work, its own settings or store differ, or the settings cannot work.
        """
        with ExitStack() as held:

            def prepare() -> PretrainConfig:
                config = self._check(store, device, processes)
                if self._saved is None:
                    self._make(config, store, held)
                else:
                    held.enter_context(run_lock(self.path))
                    remove_leftovers(self.path)
                    if not (self.path / CHECKPOINT).exists():
                        logger.warning("%s: holds no checkpoint yet, so the run starts from its first step", self.path)
                return config

            yield processes.broadcast_from_rank0(prepare)

    def _check(self, store: StoreSummary, device: torch.device, processes: Processes) -> PretrainConfig:
        """The run's configuration, once all that can be wrong with it has been looked for."""
        if self._saved is None:
            config = PretrainConfig().replace(**self.settings)
        else:
            config = self._changed_config(self._saved, store)
        check_batch_size(config, processes)
        if self._saved is None and device.type == "cpu":
            check_memory(config, processes)
        return config

    def _changed_config(self, text: str, store: StoreSummary) -> PretrainConfig:
        """The saved configuration with the settings that are given now."""
        path = self.path / CONFIG
        try:
            content = json.loads(text)
            saved = PretrainConfig.from_dict({k: v for k, v in content.items() if k not in NO_SETTINGS})
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: damaged ({error}); restore it, or begin a new run in another folder") from error
        if content.get("store", store.fingerprint) != store.fingerprint:
            raise UserError(
                f"{self.path}: this run was begun with another store (or the store has changed since); give the store "
                "it was begun with, or begin a new run in another folder"
            )
        config = saved.replace(**self.settings)
        before, now = saved.settings(), config.settings()
        for name, value in before.items():
            if value != now[name] and name not in CHANGEABLE_ON_RESUME:
                raise UserError(
                    f"{self.path}: the run there has {name} = {value}, not {now[name]}; leave the flag, and --preset, "
                    "out to resume it"
                )
        if config.run.accumulate != saved.run.accumulate and config.model.head_batch_norm:
            raise UserError(
                f"{self.path}: the run there has accumulate = {saved.run.accumulate}, not {config.run.accumulate}, and "
                "with head_batch_norm the parts of a batch change what is computed; leave the flag out to resume it"
            )
        return config

    def _make(self, config: PretrainConfig, store: StoreSummary, held: ExitStack) -> None:
        """Make and lock the folder of a new run, and save its configuration."""
        self._check_is_empty()
        versions = {"package": __version__, "torch": torch.__version__}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(run_lock(self.path))
            self._check_is_empty()  # another run may have begun and ended meanwhile
            remove_leftovers(self.path)
            of_store = {"store": store.fingerprint, "spacing_mm": store.spacing_mm}
            write_json(self.path / CONFIG, {**config.to_dict(), "versions": versions, **of_store})
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); choose another folder") from error
        if self.resume:
            logger.warning("%s: there is no run to resume, so a new one begins", self.path)

    def _check_is_empty(self) -> None:
        """Raise `UserError` where a new run's folder holds anything but its lock and what a killed run left."""
        path = self.path
        files = path.iterdir() if path.is_dir() else [path] if path.exists() else []
        if any(not file.name.startswith(RUN_LOCK) and not is_leftover(file) for file in files):
            if self.resume:
                reason = f"holds files but no {CONFIG}, so there is no run to resume; choose another folder"
            elif (path / CONFIG).is_file():
                reason = "exists already and is not empty; add --c to resume the run in it, or choose another folder"
            else:
                reason = "exists already and is not empty; choose another folder"
            raise UserError(f"{path}: {reason}")


def check_batch_size(config: PretrainConfig, processes: Processes) -> None:
    """Raise `UserError` unless every rank can take its batch in equal parts."""
    size, accumulate = processes.world_size, config.run.accumulate
    if config.optim.batch_size % (size * accumulate):
        divisors = []
        if size > 1:
            divisors.append(f"{size} processes")
        if accumulate > 1:
            divisors.append(f"--accumulate {accumulate}")
        raise UserError(
            f"batch_size {config.optim.batch_size} cannot be divided by {' with '.join(divisors)}; "
            f"choose a multiple of {size * accumulate}"
        )
