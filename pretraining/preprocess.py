"""From a folder of CT scans to a store: what `cads_preprocess` does. Steps and formats: docs/preprocessing.md."""

import argparse
import logging
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from pretraining.ct.find_scans import find_scans, split_name_clashes
from pretraining.ct.scan import Scan, UnusableScanError, printable, reason_of
from pretraining.store.add_scan import Task, preprocess_scan
from pretraining.store.failures import Failures
from pretraining.store.pseudonyms import Pseudonyms
from pretraining.store.store import Store
from pretraining.store.writer import StoreWriter, without_doubles
from pretraining.system.command import run_command
from pretraining.system.errors import UserError, environment_error, is_environment_error
from pretraining.system.lock import store_lock
from pretraining.system.machine import default_processes
from pretraining.system.worker_pool import run_in_processes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A share of the scans: of their sorted names every ``count``-th, the first being ``number`` (from 0 on)."""

    number: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f" -num_parts {self.count} -part_id {self.number}" if self.count > 1 else ""


class StopSignal(BaseException):
    """SIGINT or SIGTERM arrived; no `Exception`, so that nothing on the way mistakes it for a failure."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def preprocess(source: Path, store: Path, processes: int, part: Part, anonymise: bool = False) -> int:
    """Add every scan in ``source`` to the store in folder ``store``, leaving alone what it holds already.

    With several parts, each adds its share, at the same time or one after the other, on any machines that see the
    folders; the part that finds every scan done or failed completes the store.

    Args:
        source: folder of scans, or one file.
        store: folder of the store.
        processes: how many work at once.
        part: the share of the scans to do.
        anonymise: keep names of files out of the store and the log, see `pretraining.store.pseudonyms`.

    Returns:
        The exit code: 0 all scans of the part are in the store, 1 some could not be used, 130 / 143 stopped by a
        signal.

    Raises:
        UserError: nothing could be done.
    """
    try:
        with _signals_as_exceptions():
            return _preprocess(source, StoreWriter(store, anonymise), processes, part)
    except StopSignal as stop:
        logger.info(
            "stopped; nothing finished is lost, the same command goes on: cads_preprocess %s %s%s%s",
            source, store, part, " --anonymise" if anonymise else "",
        )  # fmt: skip
        return 128 + stop.signum


def _preprocess(source: Path, writer: StoreWriter, processes: int, part: Part) -> int:
    """`preprocess` without the signals."""
    writer.check_folder()
    logger.info("searching %s", source)
    scans, unusable = find_scans(source, writer.path)
    if not scans and not unusable:
        raise UserError(f"{source}: holds no CT scan; put NIfTI, NRRD or MHA files or DICOM series there")
    with store_lock(writer.path, part.number, part.count):
        return _add(source, writer, processes, part, scans, unusable)


def _add(
    source: Path, writer: StoreWriter, processes: int, part: Part, scans: list[Scan], unusable: dict[str, str]
) -> int:
    """Add what was found, while no other process does."""
    names = {scan.name for scan in scans} | unusable.keys()
    share = set(sorted(names)[part.number :: part.count])
    alone = part.count == 1
    writer.prepare(())
    if writer.anonymised:
        pseudonyms = Pseudonyms(writer.path)
        scans = [pseudonyms.of(scan) for scan in scans]
    # Where other parts may be at work, their temporary files and records stay.
    ids = None if alone else {scan.volume_id for scan in scans if scan.name in share}
    writer.remove_leftovers(ids)
    failures = Failures(writer.path, writer.anonymised)
    failures.forget(None if alone else share)
    finished = writer.finished()
    # Judged over all scans, not over the share: two parts must not make one volume of two scans.
    clear = {scan.source: scan.name for scan in scans}
    sources = {volume_id: entry["source"]["path"] for volume_id, entry in finished.items()}
    scans, clashes = split_name_clashes(scans, {known: clear.get(path, path) for known, path in sources.items()})
    hopeless = unusable | clashes
    mine = [scan for scan in scans if scan.name in share]
    tasks = [Task(scan, writer) for scan in mine if scan.volume_id not in finished]
    failed = {name: reason for name, reason in hopeless.items() if name in share}
    for scan in mine:
        if scan.volume_id in finished and not _is_same_source(scan, finished[scan.volume_id]["source"]):
            failed[scan.name] = (
                f"is not the file that volume '{scan.volume_id}' of the store was made from; delete "
                f"{scan.volume_id}.json in the store's folder 'volumes' to make it anew, or choose another STORE"
            )
    for name, reason in failed.items():
        _record(failures, name, reason)
    try:
        _run(tasks, processes, len(mine) - len(tasks), failures)
    finally:
        writer.remove_leftovers(ids)
    failed = {name: reason for name, reason in failures.read().items() if name in names}
    done = writer.finished_ids()
    open_names = {scan.name for scan in scans if scan.volume_id not in done} | hopeless.keys()
    code = 1 if share & failed.keys() else 0
    if to_do := len(open_names - failed.keys()):
        logger.info("part %d of %d is done (exit code %d)", part.number, part.count, code)
        logger.info("scans left to other parts: %d; the part that ends last completes the store", to_do)
        return code
    return _complete(source, writer, failures, failed, clear, code)


def _run(tasks: list[Task], processes: int, already_done: int, failures: Failures) -> None:
    """Preprocess scans in parallel and record those that could not be used."""
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
                _record(failures, task.scan.name, reason_of(error))
            bar.update()


def _record(failures: Failures, name: str, reason: str) -> None:
    """Say and keep why a scan could not be used."""
    _tell(failures, name, reason)
    try:
        failures.record(name, reason)
    except OSError as error:
        if not is_environment_error(error):
            raise
        raise environment_error(error, failures.summary.parent) from None


def _tell(failures: Failures, name: str, reason: str) -> None:
    if failures.are_private:
        logger.warning("a scan could not be used: see %s", failures.folder)
    else:
        logger.warning("%s: %s", printable(name), printable(reason))


def _is_same_source(scan: Scan, known: dict[str, Any]) -> bool:
    """Whether a scan's files are those that the store's entry describes; read only where their times differ."""
    try:
        size_bytes, mtime_ns = scan.stat()
    except UnusableScanError:
        return False
    if scan.source != known["path"] or size_bytes != known["size_bytes"]:
        return False
    return mtime_ns == known["mtime_ns"] or scan.sha256() == known["sha256"]


def _complete(
    source: Path, writer: StoreWriter, failures: Failures, failed: dict[str, str], names: dict[str, str], code: int
) -> int:
    """Write failed.json, the manifest and the contact sheets; parts that end at the same moment write the same.

    Args:
        source: where the scans are.
        writer: of the store.
        failures: of the store.
        failed: the reason for each scan that could not be used.
        names: of the scans, by their source as the store has it.
        code: the exit code so far.

    Returns:
        The exit code.
    """
    from pretraining.store.contact_sheet import write_contact_sheets

    entries, doubles = without_doubles(writer.finished(), names)
    for name, reason in doubles.items():
        _tell(failures, name, reason)
    failed = doubles | failed
    failures.write_summary(failed)
    manifest = writer.write_manifest(True, entries)
    if not manifest["volumes"]:
        name, reason = next(iter(failed.items()))
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        first = "" if failures.are_private else f": {printable(name)}{others}: {printable(reason)}"
        raise UserError(f"{source}: no scan could be used{first}; see {failures.summary}")
    store = Store(writer.path, manifest)
    sheets = write_contact_sheets(store)
    logger.info("volumes in %s: %d; look at %s: every body frontal, head up?", writer.path, len(store), sheets[0])
    code = 1 if doubles else code
    if failed:
        whose = f"exit code {code}" if code else "all of other parts"
        logger.warning("scans that could not be used: %d (%s), see %s", len(failed), whose, failures.summary)
    return code


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


def main(argv: list[str] | None = None) -> int:
    """`cads_preprocess INPUT STORE`: CT scans to a store of volumes at 1 mm and their radiographs."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:

    parser = argparse.ArgumentParser(
        prog="cads_preprocess",
        description="Bring CT scans to 1 mm in one orientation, make their frontal radiographs, and store both for "
        "cads_pretrain. Can be stopped and started again.",
    )
    parser.add_argument("input", metavar="INPUT", type=Path, help="folder of NIfTI, NRRD, MHA or DICOM, or one file")
    parser.add_argument("store", metavar="STORE", type=Path, help="new folder, or a store to go on with or add to")
    parser.add_argument(
        "-np", metavar="N", type=positive_int, default=default_processes(), help="processes (default: %(default)s)"
    )
    parser.add_argument(
        "-num_parts", metavar="N", type=positive_int, default=1, help="split the scans into N parts, for job arrays"
    )
    parser.add_argument("-part_id", metavar="I", type=int, help="which part to do, from 0 to N - 1")
    parser.add_argument(
        "--anonymise", action="store_true", help="call volumes by hashes; names of files only in STORE/private"
    )
    arguments = parser.parse_args(argv)
    parts, number = arguments.num_parts, arguments.part_id
    if number is None and parts > 1:
        raise UserError(f"-num_parts {parts}: needs -part_id as well, which part to do, from 0 to {parts - 1}")
    if number is not None and parts == 1:
        raise UserError(f"-part_id {number}: needs -num_parts as well, how many parts there are")
    if number is not None and not 0 <= number < parts:
        raise UserError(f"-part_id {number}: must be from 0 to {parts - 1}, for -num_parts is {parts}")
    return preprocess(arguments.input, arguments.store, arguments.np, Part(number or 0, parts), arguments.anonymise)


def positive_int(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)
