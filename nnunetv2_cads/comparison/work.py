"""Doing the trainings of a comparison: by several processes at once, each training in a process of its own."""

import json
import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from filelock import SoftFileLease

from nnunetv2_cads.comparison.design import Design, Training
from nnunetv2_cads.comparison.folder import ComparisonFolder
from pretraining.system.errors import UserError
from pretraining.system.lock import held_if_free, new_lease
from pretraining.system.machine import default_processes
from pretraining.system.subcommand import CommandFailed, last_lines, run_step

logger = logging.getLogger(__name__)

MODULE = "nnunetv2_cads.comparison.training"
NO_ROOM = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed writing")
"""What the end of a log says where a disk was full, if there was room for it."""
LEAST_ROOM = 100_000_000
"""Bytes; with less left on the disk, it is taken as the cause of a failure, too."""
TIMED_ITERATIONS = 5
WAIT_SECONDS = 2.0
"""Between looks at what other processes have not finished."""


def do_trainings(
    folder: ComparisonFolder, design: Design, share: Sequence[Training], device: str, received: Sequence[int]
) -> list[Training]:
    """Do, in order, those of a share that neither are done nor are being done by another process, and wait for those.

    An arm that fails, here or in another process, is left out from then on; the others go on. What failed before is
    tried again.

    Args:
        folder: OUT.
        design: of the comparison.
        share: the trainings of this process.
        device: cpu or cuda.
        received: signals that this process has received; one ends the work.

    Returns:
        The trainings that failed.

    Raises:
        UserError: the disk is full.
    """
    failed: dict[str, Training] = {}  # by arm
    leases = {one: new_lease(folder.root / f".{one.name}.lock", folder.root) for one in share}
    failed_before = {one: _time_of(folder.failure(one)) for one in share}
    _remove_leftovers(folder, leases)
    while not received:
        missing = [one for one in share if not folder.result(one).exists() and one.arm not in failed]
        if not missing:
            break
        begun = False
        for training in missing:
            if received or training.arm in failed:
                continue
            with held_if_free(leases[training]) as ours:
                if not ours or _is_done(folder, training):
                    continue
                if _time_of(folder.failure(training)) != failed_before[training]:  # in another process
                    failed[training.arm] = training
                    continue
                begun = True
                logger.info("training %d of %d: %s", share.index(training) + 1, len(share), describe(training))
                if not _train(folder, training, device, received):
                    failed[training.arm] = training
        if not begun:
            time.sleep(WAIT_SECONDS)
    return list(failed.values())


def _train(folder: ComparisonFolder, training: Training, device: str, received: Sequence[int]) -> bool:
    """Whether a training was done, or stopped by a signal."""
    failure = folder.failure(training)
    failure.unlink(missing_ok=True)
    try:
        run_step(_command(folder, training, device), _variables(device), folder.log(training), received)
    except CommandFailed as error:
        if _is_done(folder, training):  # it failed at nothing but its own end
            shutil.rmtree(folder.training(training))
            return True
        if shutil.disk_usage(folder.root).free < LEAST_ROOM or any(words in str(error) for words in NO_ROOM):
            raise UserError(f"{folder.root}: the disk is full; make room and give the same command again") from error
        if not failure.exists():  # it was killed
            failure.parent.mkdir(exist_ok=True)
            failure.write_text(f"{''.join(last_lines(folder.log(training), 1))}\n\n{error}\n", encoding="utf-8")
        logger.error("it failed, and %s is left out from here on; see %s", training.arm, failure)
        return False
    if not received:
        shutil.rmtree(folder.training(training))  # its checkpoints, by far the largest of all
    return True


def _is_done(folder: ComparisonFolder, training: Training) -> bool:
    """Whether there is a result, also one that another machine has written: a network file system remembers for up to a
    minute that a file was missing, until something else changes in its folder."""
    result = folder.result(training)
    result.parent.mkdir(parents=True, exist_ok=True)
    probe = result.with_name(f".{secrets.token_hex(4)}.tmp")
    probe.touch()
    probe.unlink()
    return result.exists()


def _time_of(file: Path) -> int:
    """When a file was changed, in ns; 0 where there is none."""
    return file.stat().st_mtime_ns if file.exists() else 0


def _remove_leftovers(folder: ComparisonFolder, leases: Mapping[Training, SoftFileLease]) -> None:
    """Checkpoints of finished trainings, whose process was stopped just then."""
    for training, lease in leases.items():
        if folder.result(training).exists() and folder.training(training).exists():
            with held_if_free(lease) as ours:
                if ours:
                    shutil.rmtree(folder.training(training), ignore_errors=True)


def timings(
    folder: ComparisonFolder, design: Design, device: str, received: Sequence[int]
) -> Iterator[tuple[str, dict[str, float]]]:
    """What a step of each arm costs, from a few.

    Raises:
        UserError: an arm cannot be trained.
    """
    for arm in design.arms:
        training = Training(arm.name, design.budgets[0], 0)
        log = folder.root / "logs" / f"timing__{arm.name}.log"
        try:
            run_step(
                [*_command(folder, training, device), "--time", str(TIMED_ITERATIONS)],
                _variables(device),
                log,
                received,
            )
        except CommandFailed as error:
            raise UserError(f"arm {arm.name} cannot be trained:\n{error}") from error
        if received:
            return
        yield arm.name, json.loads(log.read_text(encoding="utf-8").strip().splitlines()[-1])


def describe(training: Training) -> str:
    """A training in words."""
    return f"{training.arm}, {training.budget} labelled, seed {training.seed}"


def _variables(device: str) -> dict[str, str]:
    """nnU-Net's numbers of processes, where the user has not set them: its own are for a large machine with a GPU."""
    ours = {"nnUNet_def_n_proc": str(default_processes())}
    ours |= {"nnUNet_n_proc_DA": "0"} if device == "cpu" else {}
    return {name: value for name, value in ours.items() if name not in os.environ}


def _command(folder: ComparisonFolder, training: Training, device: str) -> list[str]:
    return [sys.executable, "-m", MODULE, str(folder.root), training.name, device, "--parent", str(os.getpid())]


def share_of(design: Design, part: int, parts: int) -> list[Training]:
    """The trainings of one of several machines."""
    return list(design.trainings())[part::parts]


def unfinished(folder: ComparisonFolder, design: Design) -> list[Training]:
    """The trainings that have no result yet."""
    return [training for training in design.trainings() if not folder.result(training).exists()]


def failures(folder: ComparisonFolder, design: Design) -> dict[Training, str]:
    """Why trainings failed, in one line each."""
    found = {training: folder.failure(training) for training in unfinished(folder, design)}
    texts = {one: path.read_text(encoding="utf-8") for one, path in found.items() if path.exists()}
    return {one: next(iter(text.splitlines()), "the reason could not be written") for one, text in texts.items()}
