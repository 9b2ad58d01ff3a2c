"""One writer per folder: two runs in one folder would mix their files.

A lock is a file that only one process can make (O_EXCL, which network file systems keep, too), with the host, the
process and the time in it. Whoever ends removes it. One that a killed process left behind is recognised on its own
host, by the process being gone, and taken over. Of another host nothing can be known without waiting, and clocks
differ, so there the message says how to remove the file.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pretraining.errors import UserError

RUN_LOCK = ".run.lock"
STORE_LOCK = ".preprocess"
_FIELDS = {"host", "namespace", "pid", "started", "since", "token"}


def run_lock(output: Path) -> AbstractContextManager:
    """Hold the folder of a run, which exists.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    return _locked(output / RUN_LOCK, output, lambda name: False)


def store_lock(store: Path, number: int, count: int) -> AbstractContextManager:
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
    suffix = f"_of_{count}.lock"
    name = f"{STORE_LOCK}.{number}{suffix}" if count > 1 else f"{STORE_LOCK}.lock"
    return _locked(store / name, store, lambda other: not other.endswith(suffix))


@contextmanager
def _locked(path: Path, folder: Path, is_rival: Callable[[str], bool]) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs.

    Args:
        path: the file.
        folder: what is locked, for messages.
        is_rival: by its name, whether another lock file of a store excludes this one.

    Raises:
        UserError: another process holds it or a rival, or the file cannot be written.
    """
    owner = {"host": socket.gethostname(), "namespace": _namespace(), "pid": os.getpid(),
             "started": _start_of(os.getpid()), "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
             "token": secrets.token_hex(8)}  # fmt: skip
    try:
        _take(path, owner, folder)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check permissions and free space") from error
    try:
        # after the own file is there: of two that begin at once, at least one sees the other
        for rival in path.parent.glob(f"{STORE_LOCK}*.lock"):
            if rival != path and is_rival(rival.name):
                _refuse_if_held(rival, folder)
                rival.unlink(missing_ok=True)
        yield
    finally:
        if _read(path) == owner:  # somebody who was told to may have removed it, and another taken it
            path.unlink(missing_ok=True)


def _take(path: Path, owner: dict, folder: Path) -> None:
    """Make the lock file; a stale one is moved away first.

    The content is complete when the name appears: a hard link is as exclusive as O_EXCL.
    """
    ours = path.with_name(f"{path.name}.{owner['token']}.tmp")
    ours.write_text(json.dumps(owner) + "\n", encoding="utf-8")
    try:
        for _ in range(3):
            try:
                _link(ours, path, owner)
                return
            except FileExistsError:
                _refuse_if_held(path, folder)
                _remove_stale(path, ours.with_suffix(".old"))
        raise UserError(f"{folder}: several processes take its lock {path.name} at once; start this one again")
    finally:
        ours.unlink(missing_ok=True)


def _link(ours: Path, path: Path, owner: dict) -> None:
    """Give our file the lock's name, unless that exists."""
    try:
        os.link(ours, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(owner, file)
            file.write("\n")


def _remove_stale(path: Path, aside: Path) -> None:
    """Remove a lock that nobody holds, and not one that another process has made since."""
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _holder_lives(_read(aside)) and not path.exists():
        aside.rename(path)
    aside.unlink(missing_ok=True)


def _refuse_if_held(path: Path, folder: Path) -> None:
    holder = _read(path)
    if not path.exists() or not _holder_lives(holder):
        return
    who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "another process"
    raise UserError(
        f"{folder}: is being written to by {who}; wait for it or stop it, or, if that process is gone, remove {path}"
    )


def _read(path: Path) -> dict | None:
    """What a lock file says; None where it is gone, or not (yet) complete."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return holder if holder.keys() == _FIELDS else None
    except (OSError, ValueError, AttributeError):
        return None


def _holder_lives(holder: dict | None) -> bool:
    """Whether the holder may still be at work: always, unless it ran on this host (and container) and is gone."""
    if holder is None or (holder["host"], holder["namespace"]) != (socket.gethostname(), _namespace()):
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return _start_of(holder["pid"]) in (holder["started"], "")


def _namespace() -> str:
    """Which processes this one sees: containers of one host name do not see each other's."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process began, since the machine did: process numbers come again. Empty where /proc does not tell."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
    state, *fields = status.rpartition(")")[2].split()
    return "gone" if state == "Z" else f"{boot} {fields[18]}"
