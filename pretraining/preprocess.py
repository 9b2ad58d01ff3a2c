"""`cads_preprocess`: from a folder of CT scans to a store. Steps and formats: docs/preprocessing.md."""

import argparse
import functools
import logging
import math
import shlex
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nnunetv2_cads.encoder_file.record import SPACING_MM
from pretraining.ct.find_scans import find_scans, passed_over_text
from pretraining.ct.scan import Scan, UnreadableDiskError, UnusableScanError, printable, reason_of
from pretraining.store.add_scan import preprocess_scan
from pretraining.store.coarse import without_coarse
from pretraining.store.duplicates import without_duplicates
from pretraining.store.failures import Failures
from pretraining.store.pseudonyms import Pseudonyms
from pretraining.store.store import Store
from pretraining.store.work_plan import Part, Plan, make_plan
from pretraining.store.writer import StoreWriter
from pretraining.system.command import positive_int, positive_number, run_command
from pretraining.system.errors import UserError, environment_error, is_environment_error
from pretraining.system.lock import store_lock
from pretraining.system.machine import default_processes
from pretraining.system.signals import StopSignal, stop_signals_raised
from pretraining.system.worker_pool import run_in_processes

logger = logging.getLogger(__name__)

SCAN_MINUTES = 30.0
"""Default time limit for one scan: about twenty times what the largest accepted one (10^9 voxels at 1 mm) takes."""

MAX_UNREAD_IN_A_ROW = 5
"""Scans that a failing disk costs before the command ends: one may lie on a bad place, all of them mean a dead disk."""


def preprocess(
    source: Path,
    store: Path,
    processes: int,
    part: Part,
    anonymise: bool = False,
    scan_minutes: float = SCAN_MINUTES,
    spacing_mm: float = SPACING_MM,
    max_spacing_mm: float = math.inf,
) -> int:
    """Add every scan in ``source`` to the store in folder ``store``, except those that it holds already.

    With several parts, each adds its scans, at the same time or one after the other, on any machines that see the
    folders; the part that finds every scan stored or failed completes the store.

    Args:
        source: folder of scans, or one file.
        store: folder of the store.
        processes: how many scans at a time.
        part: which scans.
        anonymise: keep names of files out of the store and the log, see `pretraining.store.pseudonyms`.
        scan_minutes: how long one scan may take.
        spacing_mm: edge of the cubic voxels that scans are resampled to.
        max_spacing_mm: scans with a longer voxel edge are left out.

    Returns:
        The exit code: 0 all scans of the part are in the store, 1 some could not be used.

    Raises:
        UserError: nothing could be done.
        StopSignal: SIGINT or SIGTERM; what is finished is kept.
    """
    writer = StoreWriter(store, anonymise, spacing_mm, max_spacing_mm)
    with stop_signals_raised():
        writer.check_folder()
        logger.info("searching %s", source)
        passed_over: Counter[str] = Counter()
        scans, unusable = find_scans(source, writer.path, passed_over)
        others = passed_over_text(passed_over, by_kind=not anonymise)
        if not scans and not unusable:
            found = f" ({others})" if others else ""
            raise UserError(f"{source}: holds no CT scan{found}; put NIfTI, NRRD or MHA files or DICOM series there")
        with store_lock(writer.path, part.number, part.count):
            code = _add_to_store(writer, source, scans, unusable, part, processes, 60 * scan_minutes)
        if others:
            logger.info("%s", others)
        return code


def _add_to_store(
    writer: StoreWriter, source: Path, scans: list[Scan], unusable: dict[str, str], part: Part, processes: int,
    seconds: float,
) -> int:  # fmt: skip
    """Add what was found, with the store's lock held; arguments and result as for `preprocess`."""
    writer.prepare()
    if writer.anonymised:
        pseudonyms = Pseudonyms(writer.path)
        scans = [pseudonyms.of(scan) for scan in scans]
    names = {scan.source: scan.name for scan in scans}
    entries = writer.finished()
    sources = {volume_id: entry["source"]["path"] for volume_id, entry in entries.items()}
    plan = make_plan(scans, unusable, part, {volume_id: names.get(path, path) for volume_id, path in sources.items()})
    failures = Failures(writer.path, writer.anonymised)
    failures.forget(plan.own_names)
    for name, reason in (plan.failed | _changed_sources(plan.done, entries)).items():
        _record(failures, name, reason)
    del entries  # 200 MB of 100,000 scans; what is there at the end is read then
    writer.remove_leftovers(plan.own_ids)
    try:
        _add_scans(plan, functools.partial(preprocess_scan, writer=writer), failures, processes, seconds)
    finally:
        writer.remove_leftovers(plan.own_ids)
    failed = {name: reason for name, reason in failures.read().items() if name in plan.names}
    code = 1 if plan.part_names & failed.keys() else 0
    if open_names := plan.open_names(writer.finished_ids(), failed):
        logger.info("part %d of %d is done (exit code %d)", part.number, part.count, code)
        logger.info("scans left to other parts: %d; the part that ends last completes the store", len(open_names))
        return code
    return _complete(source, writer, failures, failed, names, code)


def _changed_sources(scans: list[Scan], entries: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The reason for each scan that is not what its volume in the store was made from."""
    return {
        scan.name: f"is not the file that volume '{scan.volume_id}' of the store was made from; to replace the volume, "
        f"delete {scan.volume_id}.json in the store's folder 'volumes', or choose another STORE"
        for scan in scans
        if not _is_same_source(scan, entries[scan.volume_id]["source"])
    }


def _is_same_source(scan: Scan, known: dict[str, Any]) -> bool:
    """Whether a scan's files are those that the store's entry describes; read only where their times differ."""
    try:
        size_bytes, mtime_ns = scan.stat()
    except UnusableScanError:
        return False
    if scan.source != known["path"] or size_bytes != known["size_bytes"]:
        return False
    return mtime_ns == known["mtime_ns"] or scan.sha256() == known["sha256"]


def _add_scans(plan: Plan, add: Callable[[Scan], None], failures: Failures, processes: int, seconds: float) -> None:
    """Preprocess the scans to do in parallel and record those that cannot be used."""
    total, unread_in_a_row = len(plan.done) + len(plan.to_do), 0
    with (
        logging_redirect_tqdm([logging.getLogger("pretraining")]),
        tqdm(total=total, initial=len(plan.done), desc="preprocessing", unit="scan", dynamic_ncols=True) as bar,
        closing(run_in_processes(add, plan.to_do, processes, seconds)) as results,
    ):
        for scan, error in results:
            if isinstance(error, UserError):
                raise error
            if error is not None:
                _record(failures, scan.name, reason_of(error))
            unread_in_a_row = unread_in_a_row + 1 if isinstance(error, UnreadableDiskError) else 0
            if unread_in_a_row == MAX_UNREAD_IN_A_ROW:
                raise UserError(f"the last {unread_in_a_row} scans could not be read, so this ends here: {error}")
            bar.update()


def _record(failures: Failures, name: str, reason: str) -> None:
    """Warn of a scan that cannot be used, and record the reason in the store."""
    _warn(failures, name, reason)
    try:
        failures.record(name, reason)
    except OSError as error:
        if not is_environment_error(error):
            raise
        raise environment_error(error, failures.summary.parent) from None


def _warn(failures: Failures, name: str, reason: str) -> None:
    if failures.are_private:
        logger.warning("a scan could not be used: see %s", failures.folder)
    else:
        logger.warning("%s: %s", printable(name), printable(reason))


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

    # A scan that has failed, such as one whose file has changed, is no copy of its volume any more.
    copies = {source: name for source, name in names.items() if name not in failed}
    entries, coarse = without_coarse(writer.finished(), names, writer.max_spacing_mm)
    entries, duplicates = without_duplicates(entries, copies)
    left_out = coarse | duplicates
    for name, reason in left_out.items():
        _warn(failures, name, reason)
    failed = left_out | failed
    failures.write_summary(failed)
    manifest = writer.write_manifest(True, entries)
    if not manifest["volumes"]:
        name, reason = next(iter(failed.items()))
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        first = "" if failures.are_private else f": {printable(name)}{others}: {printable(reason)}"
        raise UserError(f"{source}: no scan could be used{first}; see {failures.summary}")
    store = Store(writer.path, manifest)
    sheets = write_contact_sheets(store, manifest["volumes"])
    logger.info("volumes in %s: %d; look at %s: every body frontal, head up?", writer.path, len(store), sheets[0])
    logger.info("pre-train on it with: cads_pretrain %s RUN", shlex.quote(str(writer.path)))
    code = 1 if left_out else code
    if failed:
        whose = f"exit code {code}" if code else "all of other parts"
        logger.warning("scans that could not be used: %d (%s), see %s", len(failed), whose, failures.summary)
    return code


def main(argv: list[str] | None = None) -> int:
    """`cads_preprocess INPUT STORE`: CT scans to a store of volumes on one grid and their radiographs."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="cads_preprocess",
        description="Bring CT scans to one spacing and one orientation, make their frontal radiographs, and store both "
        "for cads_pretrain. Can be stopped; the same command resumes.",
    )
    parser.add_argument("input", metavar="INPUT", type=Path, help="folder of NIfTI, NRRD, MHA or DICOM, or one file")
    parser.add_argument("store", metavar="STORE", type=Path, help="new folder, or a store to resume or add to")
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
    parser.add_argument(
        "--scan-minutes", metavar="M", type=positive_number, default=SCAN_MINUTES,
        help="give up a scan that takes longer (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--spacing-mm", metavar="MM", type=positive_number, default=SPACING_MM,
        help="edge of the cubic voxels; fine-tune at the same (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--max-spacing-mm", metavar="MM", type=positive_number, default=math.inf,
        help="leave out scans with a longer voxel edge, such as thick slices (default: none)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    parts, number = arguments.num_parts, arguments.part_id
    if number is None and parts > 1:
        raise UserError(f"-num_parts {parts}: needs -part_id as well, which part to do, from 0 to {parts - 1}")
    if number is not None and parts == 1:
        raise UserError(f"-part_id {number}: needs -num_parts as well, how many parts there are")
    if number is not None and not 0 <= number < parts:
        raise UserError(f"-part_id {number}: must be from 0 to {parts - 1}, for -num_parts is {parts}")
    try:
        return preprocess(
            arguments.input, arguments.store, arguments.np, Part(number or 0, parts), arguments.anonymise,
            arguments.scan_minutes, arguments.spacing_mm, arguments.max_spacing_mm,
        )  # fmt: skip
    except StopSignal as stop:
        command = shlex.join(["cads_preprocess", *argv])
        logger.info("stopped; no finished volume is lost. To resume, give the same command: %s", command)
        return stop.exit_code
