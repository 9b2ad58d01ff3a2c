"""From a download to a dataset: all cases, in parallel, in a folder that becomes the dataset when it is complete."""

import functools
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from nnunetv2.paths import nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets
from tqdm import tqdm

from nnunetv2_cads.tasks.convert_case import Job, convert_case
from nnunetv2_cads.tasks.find_cases import Case, Found, find_cases
from nnunetv2_cads.tasks.nifti_file import LeftOut
from nnunetv2_cads.tasks.report import Report
from nnunetv2_cads.tasks.sources import Source
from nnunetv2_cads.tasks.work_folder import WorkFolder
from pretraining.system.errors import UserError
from pretraining.system.lock import run_lock
from pretraining.system.signals import StopSignal, stop_signals_raised
from pretraining.system.worker_pool import WorkerDiedError, run_in_processes

HIGHEST_ID = 999
"""nnU-Net's names of datasets have three digits."""


def convert(source: Source, folder: Path, dataset_id: int, processes: int) -> int:
    """Make an nnU-Net raw dataset of a task's download.

    Args:
        source: the task.
        folder: of the download, unpacked; searched with all below it.
        dataset_id: number of the dataset.
        processes: how many cases at a time.

    Returns:
        The exit code: 0 done, 1 done but cases were left out, 130 / 143 stopped by a signal.

    Raises:
        UserError: nothing could be done, or the dataset cannot be written.
    """
    work = _work_folder(source, dataset_id)
    try:
        with stop_signals_raised():
            found = find_cases(source, folder)
            work.make(with_test_images=any(case.label is None for case in found.cases))
            with run_lock(work.path):
                report = _convert_all(source, folder, found, work, processes)
            work.remove()
    except StopSignal as stop:
        sys.stderr.write("stopped; to resume, give the same command again\n")
        return stop.exit_code
    if not report.labelled:
        name, reason = next(iter(report.left_out.items()))
        others = f" (and {len(report.left_out) - 1} more)" if len(report.left_out) > 1 else ""
        raise UserError(f"{folder}: no case could be used: {name}{others}: {reason}")
    sys.stdout.write(report.text(work.final))
    sys.stdout.write(f"plan with: cads_plan_and_preprocess -d {dataset_id} -c 3d_fullres\n")
    return int(bool(report.left_out))


def _work_folder(source: Source, dataset_id: int) -> WorkFolder:
    """The folder for a new dataset.

    Raises:
        UserError: nnU-Net's folder is not set, or the number is taken.
    """
    if dataset_id > HIGHEST_ID:
        raise UserError(f"-d {dataset_id}: the number of a dataset is from 1 to {HIGHEST_ID}")
    if not nnUNet_raw.is_set():
        raise UserError(f"{nnUNet_raw.env_var_name} is not set; export {nnUNet_raw.env_var_name}=/path/to/folder")
    work = WorkFolder(Path(nnUNet_raw.get()), f"Dataset{dataset_id:03d}_{source.dataset_name}")
    if work.final.exists():
        raise UserError(f"{work.final}: exists and is left as it is; remove it, or give another number with -d")
    others = [str(name) for name in find_candidate_datasets(dataset_id) if name != work.final.name]
    if others:
        raise UserError(f"-d {dataset_id}: nnU-Net's folders have {', '.join(others)}; give another number")
    return work


def _convert_all(source: Source, folder: Path, found: Found, work: WorkFolder, processes: int) -> Report:
    """Convert the cases that are not finished yet; then, if any with labels is, give the dataset its name."""
    ending = ".nii" if all(path.suffix == ".nii" for case in found.cases for path in case.files) else ".nii.gz"
    job = Job(source, work.dataset, ending)
    finished = {case: notes for case in found.cases if (notes := work.notes_of(case, job)) is not None}
    failed: dict[Case, str] = {}
    with (
        tqdm(total=len(found.cases), initial=len(finished), desc="converting", unit="case", dynamic_ncols=True) as bar,
        closing(_outcomes([case for case in found.cases if case not in finished], job, processes)) as outcomes,
    ):
        for case, outcome in outcomes:
            if isinstance(outcome, list):
                work.record(case, job, outcome)
                finished[case] = outcome
            else:
                failed[case] = _reason(case, outcome)
            bar.update()
    report = Report(
        source=source,
        folder=folder,
        missing=found.missing,
        converted={case: finished[case] for case in found.cases if case in finished},
        left_out=found.left_out | {case.name: failed[case] for case in found.cases if case in failed},
    )
    if report.labelled:
        work.remove_all_but(finished, job)
        work.finish(report.description(ending), report.content())
    return report


def _outcomes(cases: list[Case], job: Job, processes: int) -> Iterator[tuple[Case, list[str] | Exception]]:
    """Convert cases in parallel; each when it ends, with its notes or what it raised."""
    return run_in_processes(functools.partial(convert_case, job=job), cases, processes)


def _reason(case: Case, error: Exception) -> str:
    """Why a case is left out.

    Raises:
        Exception: ``error`` itself, where it is not the case's fault.
    """
    if isinstance(error, LeftOut):
        return str(error)
    if isinstance(error, WorkerDiedError | MemoryError):
        return f"{case.image}: ended the process that read it ({error}), most likely for want of memory; lower -np"
    raise error
