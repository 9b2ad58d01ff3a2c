"""From a folder of CT scans to a store: what `cads_preprocess` does. Steps and formats: docs/preprocessing.md."""

import logging
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pretraining.data.find_scans import find_scans, split_name_clashes
from pretraining.data.preprocess_scan import Task, preprocess_scan
from pretraining.data.scan import Scan, UnusableScanError
from pretraining.data.store import Store
from pretraining.data.store_writer import StoreWriter
from pretraining.data.worker_pool import WorkerDiedError, run_in_processes
from pretraining.errors import UserError
from pretraining.files import write_json

logger = logging.getLogger(__name__)

FAILED = "failed.json"


class StopSignal(BaseException):
    """SIGINT or SIGTERM arrived; no `Exception`, so that nothing on the way mistakes it for a failure."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def preprocess(source: Path, store: Path, processes: int) -> int:
    """Add every scan in ``source`` to the store in folder ``store``, leaving alone what it holds already.

    Returns:
        The exit code: 0 all scans are in the store, 1 some could not be used, 130 / 143 stopped by a signal.

    Raises:
        UserError: nothing could be done.
    """
    try:
        with _signals_as_exceptions():
            return _preprocess(source, StoreWriter(store), processes)
    except StopSignal as stop:
        logger.info("stopped; nothing finished is lost, the same command goes on: cads_preprocess %s %s", source, store)
        return 128 + stop.signum


def _preprocess(source: Path, writer: StoreWriter, processes: int) -> int:
    """`preprocess` without the signals."""
    writer.check_folder()
    logger.info("searching %s", source)
    scans, failed = find_scans(source, writer.path)
    if not scans and not failed:
        raise UserError(f"{source}: holds no CT scan; put NIfTI, NRRD or MHA files or DICOM series there")
    writer.prepare()
    finished = writer.finished()
    scans, clashes = split_name_clashes(scans, {name: entry["source"]["path"] for name, entry in finished.items()})
    failed |= clashes
    tasks = [Task(scan, writer) for scan in scans if scan.volume_id not in finished]
    for scan in scans:
        if scan.volume_id in finished and not _is_same_source(scan, finished[scan.volume_id]["source"]):
            failed[scan.name] = (
                f"is not the file that volume '{scan.volume_id}' of the store was made from; delete "
                f"{scan.volume_id}.json in the store's folder 'volumes' to make it anew, or choose another STORE"
            )
    for name, reason in failed.items():
        logger.warning("%s: %s", name, reason)
    try:
        failed |= _run(tasks, processes, already_done=len(scans) - len(tasks))
    finally:
        writer.remove_leftovers()
    write_json(writer.path / FAILED, [{"file": name, "reason": reason} for name, reason in sorted(failed.items())])
    writer.write_manifest(complete=True)
    return _summarise(source, writer, failed)


def _run(tasks: list[Task], processes: int, already_done: int) -> dict[str, str]:
    """Preprocess scans in parallel; returns the reason for each that could not be used, by its name."""
    failed: dict[str, str] = {}
    total = already_done + len(tasks)
    with (
        logging_redirect_tqdm([logging.getLogger("pretraining")]),
        tqdm(total=total, initial=already_done, desc="preprocessing", unit="scan", dynamic_ncols=True) as bar,
        closing(run_in_processes(preprocess_scan, tasks, processes)) as results,
    ):
        for task, error in results:
            if isinstance(error, UserError):
                raise error
            if error is not None:
                failed[task.scan.name] = _reason(error)
                logger.warning("%s: %s", task.scan.name, failed[task.scan.name])
            bar.update()
    return failed


def _reason(error: Exception) -> str:
    """Why a scan failed, in words."""
    if isinstance(error, UnusableScanError):
        return str(error)
    if isinstance(error, WorkerDiedError | MemoryError):
        return f"ended the process that read it ({error}), most likely for want of memory; crop it or lower -np"
    return f"could not be preprocessed because of an unexpected {type(error).__name__} ({error}); please report this"


def _is_same_source(scan: Scan, known: dict[str, Any]) -> bool:
    """Whether a scan's files are those that the store's entry describes; read only where their times differ."""
    try:
        size_bytes, mtime_ns = scan.stat()
    except UnusableScanError:
        return False
    if scan.name != known["path"] or size_bytes != known["size_bytes"]:
        return False
    return mtime_ns == known["mtime_ns"] or scan.sha256() == known["sha256"]


def _summarise(source: Path, writer: StoreWriter, failed: dict[str, str]) -> int:
    """Contact sheet, last line, exit code."""
    from pretraining.data.contact_sheet import write_contact_sheets  # matplotlib takes a second to load: last of all

    if not writer.finished():
        name, reason = next(iter(failed.items()))
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(f"{source}: no scan could be used: {name}{others}: {reason}; see {writer.path / FAILED}")
    store = Store.open(writer.path)
    sheets = write_contact_sheets(store)
    logger.info("volumes in %s: %d; look at %s: every body frontal, head up?", writer.path, len(store), sheets[0])
    if failed:
        logger.warning("scans that could not be used: %d (exit code 1), see %s", len(failed), writer.path / FAILED)
    return 1 if failed else 0


@contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Raise `StopSignal` at the first SIGINT or SIGTERM and pass over further ones while things are tidied up."""
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop(signum: int, _frame: Any) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise StopSignal(signum)

    before = {each: signal.signal(each, stop) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
