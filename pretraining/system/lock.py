"""One writer per folder: two runs in one folder would mix their files.

A lock is a file that only one process can make (O_EXCL, which network file systems keep, too), with the host, the
process and the time in it. Whoever ends removes it. One that a killed process left behind is recognised on its own
host by the process being gone. Of another host (a node that failed) it is recognised by standing still: its holder
rewrites it every `BEAT_SECONDS`, and whoever wants the folder watches for `WATCH_SECONDS` by its own clock, since
clocks differ. A holder that slept meanwhile, and finds another's lock when it wakes, ends at once.
"""

import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from pretraining.system.errors import UserError

logger = logging.getLogger(__name__)

RUN_LOCK = ".run.lock"
STORE_LOCK = ".preprocess"
BEAT_SECONDS = 15.0
"""How often a holder shows that it is at work."""
WATCH_SECONDS = 90.0
"""For how long a lock must stand still to be nobody's. Some beats may come late: over network file systems, they do."""
TAKEN_OVER = 2
"""Exit code of a process whose folder another has taken."""
_FIELDS = {"host", "namespace", "pid", "started", "since", "token", "beat"}


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
        descriptor = _take(path, owner, folder)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); check permissions and free space") from error
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(descriptor, path, owner, folder, ended), daemon=True)
    beating.start()
    try:
        # after the own file is there: of two that begin at once, at least one sees the other
        for rival in path.parent.glob(f"{STORE_LOCK}*.lock"):
            if rival != path and is_rival(rival.name):
                _remove_stale(
                    rival, path.with_name(f"{rival.name}.{owner['token']}.old"), _refuse_if_held(rival, folder)
                )
        yield
    finally:
        ended.set()
        beating.join()
        os.close(descriptor)
        if _is_ours(path, owner):  # somebody who was told to may have removed it, and another taken it
            path.unlink(missing_ok=True)


def _take(path: Path, owner: dict[str, Any], folder: Path) -> int:
    """Make the lock file and return its descriptor; a stale one is moved away first.

    The content is complete when the name appears: a hard link is as exclusive as O_EXCL.
    """
    ours = path.with_name(f"{path.name}.{owner['token']}.tmp")
    descriptor = os.open(ours, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        _write(descriptor, owner, 0)
        for _ in range(3):
            try:
                return _link(ours, descriptor, path, owner)
            except FileExistsError:
                _remove_stale(path, ours.with_suffix(".old"), _refuse_if_held(path, folder))
        raise UserError(f"{folder}: several processes take its lock {path.name} at once; start this one again")
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        ours.unlink(missing_ok=True)


def _write(descriptor: int, owner: dict[str, Any], beat: int) -> None:
    """Write the whole content in one go; always as long, so that what is there is overwritten."""
    os.pwrite(descriptor, (json.dumps(owner | {"beat": f"{beat:012d}"}) + "\n").encode(), 0)


def _beat(descriptor: int, path: Path, owner: dict[str, Any], folder: Path, ended: threading.Event) -> None:
    """Rewrite the lock until the end, through its descriptor: where another has the name by now, theirs stays whole."""
    beat = 0
    while not ended.wait(BEAT_SECONDS):
        beat += 1
        try:
            _write(descriptor, owner, beat)
            os.fsync(descriptor)  # what a network file system keeps back, others do not see
        except OSError:
            continue  # a full disk must not end a run
        holder = _read(path)
        if holder and holder["token"] != owner["token"]:
            sys.stderr.write(
                f"error: {folder}: process {holder['pid']} on {holder['host']} has taken this folder over, since this "
                "process stood still; it ends here without writing\n"
            )
            os._exit(TAKEN_OVER)


def _link(ours: Path, descriptor: int, path: Path, owner: dict[str, Any]) -> int:
    """Give our file the lock's name, unless that exists; return the descriptor of what has the name."""
    try:
        os.link(ours, path)
        return descriptor
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        named = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        _write(named, owner, 0)
        os.close(descriptor)
        return named


def _remove_stale(path: Path, aside: Path, judged: dict[str, Any] | None) -> None:
    """Remove the lock that was ``judged`` to be nobody's, and not one that another process has made since."""
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != judged and not path.exists():
        aside.rename(path)
    aside.unlink(missing_ok=True)


def _refuse_if_held(path: Path, folder: Path) -> dict[str, Any] | None:
    """Raise `UserError` if the lock's holder is at work; otherwise return what the lock says."""
    holder = _read(path)
    if not path.exists():
        return None
    who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "another process"
    is_here = holder and (holder["host"], holder["namespace"]) == (socket.gethostname(), _namespace())
    if _is_running(holder) if is_here else _is_beating(path, holder, folder, who):
        raise UserError(
            f"{folder}: is being written to by {who}; wait for it or stop it, or, if that process is gone, "
            f"remove {path}"
        )
    return holder


def _is_beating(path: Path, before: dict[str, Any] | None, folder: Path, who: str) -> bool:
    """Whether a lock of another machine changes while it is watched; one that goes is nobody's any more."""
    deadline = time.monotonic() + WATCH_SECONDS
    logger.info("%s: locked by %s; watching for up to %.0f s whether it is at work", folder, who, WATCH_SECONDS)
    while time.monotonic() < deadline:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        if _read(path) != before:
            return path.exists()
    logger.info("%s: %s is gone; its lock is taken over", folder, who)
    return False


def _read(path: Path) -> dict[str, Any] | None:
    """What a lock file says; None where it is gone, or not (yet) complete."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return holder if holder.keys() == _FIELDS else None
    except (OSError, ValueError, AttributeError):
        return None


def _is_ours(path: Path, owner: dict[str, Any]) -> bool:
    holder = _read(path)
    return holder is not None and holder["token"] == owner["token"]


def _is_running(holder: dict[str, Any]) -> bool:
    """Whether a process of this machine still is the one that made the lock."""
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
