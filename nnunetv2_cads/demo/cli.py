"""`cads_demo`: the whole job on synthetic torsos, from unlabelled CT to scored segmentations."""

import argparse
import functools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nnunetv2_cads.comparison.overlay import OverlayRow, write_overlay
from nnunetv2_cads.demo.folder import PRETRAINED, SCRATCH, DemoFolder
from nnunetv2_cads.demo.scores import Scores, read_scores
from nnunetv2_cads.demo.steps import COMMANDS, FULL, QUICK, DemoSize, Step, command_steps, write_data
from nnunetv2_cads.demo.torsos.torso import LABELS
from pretraining.system.command import run_command
from pretraining.system.errors import UserError
from pretraining.system.files import atomic_path
from pretraining.system.signals import StopSignal, stop_signals_collected
from pretraining.system.subcommand import CommandFailed, find_command, run_step

DRAWN_CASES = 4


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit code: 0 done, 1 a step failed, 2 nothing was done, 130 / 143 stopped."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    folder, size = DemoFolder(arguments.folder), QUICK if arguments.quick else FULL
    _check_commands()
    if folder.claim({"seed": arguments.seed, "quick": arguments.quick}, arguments.overwrite):
        print(f"Resuming the demo in {folder.root}: finished steps are skipped.")
    with stop_signals_collected("stopping; a second time stops at once") as received:
        try:
            _run_steps(folder, size, arguments.seed, arguments.device, received)
        except CommandFailed as error:
            print(f"error: {error}; once this is fixed, the same command resumes the demo", file=sys.stderr)
            return 1
        except StopSignal as stop:
            print("\nstopped; the same command resumes the demo", file=sys.stderr)
            return stop.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cads_demo",
        description="Pre-train on synthetic, unlabelled torso CT, fine-tune with nnU-Net on a few labelled ones and "
        "segment others: the whole job in minutes on two CPU cores, with the same commands as for your own data.",
        allow_abbrev=False,
    )
    parser.add_argument("--folder", type=Path, default=Path("cads_demo"), help="where to work (default: %(default)s)")
    parser.add_argument("--seed", type=_seed, default=0, help="which torsos to make (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke test: everything runs, nothing is learnt")
    parser.add_argument("--overwrite", action="store_true", help="discard an earlier demo in the folder, start again")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU if there is one"
    )
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(text)


def _check_commands() -> None:
    missing = [name for name in COMMANDS if find_command(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not found; install nnunetv2-cads into this Python with `pip install .`")


def _device(wanted: str) -> str:
    """cpu or cuda. PyTorch is asked in a process of its own, and only if there may be a GPU."""
    if wanted != "auto":
        return wanted
    if find_command("nvidia-smi") is None:
        return "cpu"
    test = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return "cuda" if subprocess.run([sys.executable, "-c", test], capture_output=True).returncode == 0 else "cpu"


def _run_steps(folder: DemoFolder, size: DemoSize, seed: int, wanted_device: str, received: Sequence[int]) -> None:
    steps = command_steps(folder, size, _device(wanted_device))
    count = f"{size.unlabelled} unlabelled, {size.labelled} labelled and {size.held_out} held-out torsos"
    _announce(1, len(steps), f"Make {count}")
    _do(folder, "data", lambda: write_data(folder, size, seed), received)
    exported: dict[str, str] = {}
    for number, step in enumerate(steps, start=2):
        _announce(number, len(steps), step.title)
        _print_command(step, exported)
        run = functools.partial(run_step, step.command, {**step.speed, **step.environment}, folder.log(step.name))
        _do(folder, step.name, functools.partial(run, received), received)
    scores = {start: read_scores(folder.summary(start), LABELS) for start in (SCRATCH, PRETRAINED)}
    for start, of_start in scores.items():
        of_start.write(folder.scores(start))
    _draw(folder)
    _print_summary(folder, scores[PRETRAINED], scores[SCRATCH])


def _draw(folder: DemoFolder) -> None:
    """Write the picture of the first held-out torsos."""
    rows = [
        OverlayRow(
            truth.name.removesuffix(".nii.gz"),
            folder.dataset / "imagesTs" / truth.name.replace(".nii.gz", "_0000.nii.gz"),
            {"truth": truth, "prediction": folder.predictions(PRETRAINED) / truth.name},
        )
        for truth in sorted(folder.truths.glob("*.nii.gz"))[:DRAWN_CASES]
    ]
    with atomic_path(folder.overlay) as temporary:
        write_overlay(temporary, rows, LABELS)


def _announce(number: int, commands: int, title: str) -> None:
    print(f"\n[{number}/{1 + commands}] {title}", flush=True)


def _print_command(step: Step, exported: dict[str, str]) -> None:
    """Print the command, after those of its variables that were not printed before (``exported``)."""
    for name, value in step.environment.items():
        if name in exported:
            continue
        exported[name] = value
        print(f"      export {name}={shlex.quote(os.path.relpath(value))}")
    print(f"      {shlex.join(step.command)}", flush=True)


def _do(folder: DemoFolder, name: str, work: Callable[[], None], received: Sequence[int]) -> None:
    """Do a step unless it is done, and print how long it took; raise `StopSignal` if one was received meanwhile."""
    if name in folder.seconds():
        print("      done before", flush=True)
        return
    start = time.monotonic()
    work()
    if received:
        raise StopSignal(received[0])
    seconds = time.monotonic() - start
    folder.finish(name, seconds)
    print(f"      {seconds:.0f} s", flush=True)


def _print_summary(folder: DemoFolder, scores: Scores, from_scratch: Scores) -> None:
    seconds = folder.seconds()
    print(f"\n{scores.table()}\n\nSeconds")
    for name, value in [*seconds.items(), ("together", sum(seconds.values()))]:
        print(f"  {name:<18}{value:6.0f}")
    print("\nLook at")
    radiographs = sorted(folder.store.glob("*.png"))
    for path in (*radiographs, folder.run / "progress.png", folder.run / "points.png", folder.overlay):
        print(f"  {path}")
    print(f"\n{compared(from_scratch.mean_dice, scores.mean_dice)}")
    print(f"mean Dice: {scores.mean_dice:.2f}", flush=True)


def compared(scratch: float, pretrained: float) -> str:
    """The mean Dice from random weights, and what the encoder adds to it, in words."""
    points = round(100 * (pretrained - scratch))
    change = f"loses {-points}" if points < 0 else f"adds {points}"
    return f"mean Dice from random weights: {scratch:.2f}; the encoder {change} points"
