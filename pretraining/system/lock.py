"""One writer per folder: two runs in one folder would mix their files.

A lock is a lease of `filelock`: a file that only one process can make, with its host and process number in it. The
holder refreshes the file's time every `BEAT_SECONDS` and removes the file at its end. A lock whose process on this
host is gone is taken over at once, any other one when its time has stood still for `LEASE_SECONDS`. A holder that was
suspended so long, and finds another's lock when it wakes, ends at once.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseCompromise, SoftFileLease, Timeout

from pretraining.system.errors import UserError

logger = logging.getLogger(__name__)

RUN_LOCK = ".run.lock"
STORE_LOCK = ".preprocess"
BEAT_SECONDS = 1.0
"""How often a holder shows that it is at work; a refused process waits about as long for its answer."""
WAIT_SECONDS = 0.2
"""Between two looks at a lock that is waited for."""
LEASE_SECONDS = 90.0
"""How long a lock must stand still to be taken over. Network file systems show changes late."""
TAKEN_OVER = 2
"""Exit code of a process that has lost its lock."""


@contextmanager
def run_lock(output: Path) -> Iterator[None]:
    """Hold the folder of a run, which exists.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    with _held(output / RUN_LOCK, output):
        yield


@contextmanager
def store_lock(store: Path, number: int, count: int) -> Iterator[None]:
    """Hold part ``number`` of ``count`` of a store that is being written; the folder is made where it is missing.

    Parts of one split may run at once. Everything else excludes each other: a part itself, parts of another split,
    and a run without parts.

    Raises:
        UserError: another process holds what excludes this, or the folder cannot be written.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{store}: cannot be written ({error.strerror}); choose another STORE") from None
    split = f"_of_{count}.lock"
    path = store / (f"{STORE_LOCK}.{number}{split}" if count > 1 else f"{STORE_LOCK}.lock")
    with _held(path, store):
        # Only now that the own lock is there: of two that start at once, at least one sees the other.
        for other in store.glob(f"{STORE_LOCK}*.lock"):
            if other != path and not other.name.endswith(split):
                with _held(other, store):  # nobody holds it, so it is a leftover, which this removes
                    pass
        yield


@contextmanager
def held_if_free(lease: SoftFileLease) -> Iterator[bool]:
    """Hold a lock while the block runs, if nobody else holds it.

    Args:
        lease: of `new_lease`. Ask again with the same one: a lock that was left on another machine is taken over once
            this one has seen it stand still for `LEASE_SECONDS`.

    Yields:
        Whether this process holds it.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        lease.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise _cannot_be_written(lease.lock_file, error) from error
    try:
        yield True
    finally:
        lease.release()


@contextmanager
def held_when_free(lease: SoftFileLease) -> Iterator[None]:
    """Wait until nobody else holds a lock, then hold it while the block runs.

    Args:
        lease: of `new_lease`.

    Raises:
        UserError: the file cannot be written.
    """
    while True:
        with held_if_free(lease) as ours:
            if ours:
                yield
                return
        time.sleep(WAIT_SECONDS)


@contextmanager
def _held(path: Path, folder: Path) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs.

    Args:
        path: the file.
        folder: what is locked, for messages.

    Raises:
        UserError: another process holds it, or the file cannot be written.
    """
    lease = new_lease(path, folder)
    try:
        _acquire(lease, path, folder)
    except OSError as error:
        raise _cannot_be_written(path, error) from error
    try:
        yield
    finally:
        lease.release()


def new_lease(path: Path, folder: Path) -> SoftFileLease:
    """A lock that is not held yet.

    Args:
        path: its file.
        folder: what it locks, for messages.
    """
    lease = SoftFileLease(
        path, lease_duration=LEASE_SECONDS, heartbeat_interval=BEAT_SECONDS,
        on_compromise=lambda loss: _end_process(lease, folder, loss),
    )  # fmt: skip
    return lease


def _acquire(lease: SoftFileLease, path: Path, folder: Path) -> None:
    """Take a lock that is free or whose process here is gone at once, any other if it stands still while watched."""
    try:
        lease.acquire(timeout=0)
        return
    except Timeout:
        before, holder = _time_of(path), _holder(lease)
    logger.info("%s: locked by %s; watching for up to %.0f s whether it is at work", folder, holder, LEASE_SECONDS)
    try:
        lease.acquire(
            timeout=LEASE_SECONDS + BEAT_SECONDS, poll_interval=BEAT_SECONDS / 2,
            cancel_check=lambda: _time_of(path) not in (before, None),
        )  # fmt: skip
    except Timeout:
        at = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime((_time_of(path) or time.time_ns()) / 1e9))
        raise UserError(
            f"{folder}: is being written to by {_holder(lease)}, last seen at work {at}; wait for it or stop it, or, "
            f"if that process is gone, remove {path}"
        ) from None
    logger.info("%s: %s has ended or stands still; its lock is taken over", folder, holder)


def _cannot_be_written(path: Path | str, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror}); check permissions and free space")


def _time_of(path: Path) -> int | None:
    """When a lock was refreshed, in ns by the file system's clock; None where it is gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _holder(lease: SoftFileLease) -> str:
    owner = lease.owner
    # in a container, filelock adds its process namespace to the host's name
    return f"process {owner.pid} on {owner.hostname.partition('?pidns-')[0]}" if owner else "another process"


def _end_process(lease: SoftFileLease, folder: Path, loss: LeaseCompromise) -> None:
    """End this process, which has lost its lock, before it writes; called in the thread that refreshes the lock."""
    reasons = {
        "owner-changed": f"{_holder(lease)} has taken this folder over, since this process stood still",
        "refresh-failed": f"its lock could not be refreshed for {LEASE_SECONDS:.0f} s ({loss.error})",
    }
    reason = reasons.get(loss.reason, f"its lock {lease.lock_file} has been removed")
    sys.stderr.write(f"error: {folder}: {reason}; this process ends here without writing\n")
    sys.stderr.flush()
    os._exit(TAKEN_OVER)
