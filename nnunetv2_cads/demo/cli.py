"""`cads_demo`: the whole job on synthetic torsos, from unlabelled CT to scored segmentations."""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nnunetv2_cads.demo.folder import DemoError, DemoFolder
from nnunetv2_cads.demo.overlay import write_overlay
from nnunetv2_cads.demo.runner import CommandFailed, find_command, run_command
from nnunetv2_cads.demo.scoring import format_scores, score_folder, write_scores
from nnunetv2_cads.demo.steps import COMMANDS, FULL, QUICK, DemoSize, Step, command_steps, write_data
from nnunetv2_cads.demo.torsos.torso import LABELS

_N_STEPS = len(COMMANDS) + 2


class _Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt, no `Exception` that something on the way could take for a failure."""


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns the exit code: 0 done, 1 a step failed, 2 nothing was done, 130 / 143 stopped."""
    arguments = _parser().parse_args(argv)
    folder, size = DemoFolder(arguments.folder), QUICK if arguments.quick else FULL
    previous = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        _check_commands()
        if folder.claim({"seed": arguments.seed, "quick": arguments.quick}, arguments.overwrite):
            print(f"Going on with the demo in {folder.root}: finished steps are skipped.")
        _run_steps(folder, size, arguments.seed, arguments.device)
        return 0
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except CommandFailed as error:
        print(f"error: {error}; after mending it, the same cads_demo goes on here", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, _Terminated) as stop:
        print("\nstopped; the same command goes on here", file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cads_demo",
        description="Pre-train on synthetic, unlabelled torso CT, fine-tune with nnU-Net on a few labelled ones and "
        "segment others: the whole job in minutes on two CPU cores, with the commands that serve your own data, too.",
        allow_abbrev=False,
    )
    parser.add_argument("--folder", type=Path, default=Path("cads_demo"), help="where to work (default: %(default)s)")
    parser.add_argument("--seed", type=_seed, default=0, help="which torsos to make (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a smoke test: everything runs, nothing is learnt")
    parser.add_argument("--overwrite", action="store_true", help="start again in the folder of an earlier demo")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU where there is one"
    )
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(text)


def _raise_terminated(number: int, frame: object) -> None:
    raise _Terminated


def _check_commands() -> None:
    missing = [name for name in COMMANDS if find_command(name) is None]
    if missing:
        raise DemoError(f"{', '.join(missing)} not found; install nnunetv2-cads into this Python with `pip install .`")


def _device(wanted: str) -> str:
    """cpu or cuda. PyTorch is asked in a process of its own, and only where a GPU may be."""
    if wanted != "auto":
        return wanted
    if find_command("nvidia-smi") is None:
        return "cpu"
    test = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return "cuda" if subprocess.run([sys.executable, "-c", test], capture_output=True).returncode == 0 else "cpu"


def _run_steps(folder: DemoFolder, size: DemoSize, seed: int, wanted_device: str) -> None:
    device = _device(wanted_device)
    count = f"{size.unlabelled} unlabelled, {size.labelled} labelled and {size.held_out} held-out torsos"
    _announce(1, f"Make {count}")
    _do(folder, "data", lambda: write_data(folder, size, seed))
    exported: dict[str, str] = {}
    for number, step in enumerate(command_steps(folder, size, device), start=2):
        _announce(number, step.title)
        _print_command(step, exported)
        environment = {**step.speed, **step.environment}
        _do(folder, step.name, lambda step=step, env=environment: run_command(step.command, env, folder.log(step.name)))
    _announce(_N_STEPS, "Compare the segmentations with the truth")
    truths = folder.dataset / "labelsTs"
    scores = score_folder(folder.predictions, truths, LABELS)
    mean = write_scores(folder.scores, scores)
    write_overlay(folder.overlay, folder.dataset / "imagesTs", truths, folder.predictions, LABELS)
    _print_summary(folder, format_scores(scores), mean)


def _announce(number: int, title: str) -> None:
    print(f"\n[{number}/{_N_STEPS}] {title}", flush=True)


def _print_command(step: Step, exported: dict[str, str]) -> None:
    """Show the command, after the variables it needs that no earlier one has shown (``exported``)."""
    for name, value in step.environment.items():
        if name in exported:
            continue
        exported[name] = value
        print(f"      export {name}={shlex.quote(os.path.relpath(value))}")
    print(f"      {shlex.join(step.command)}", flush=True)


def _do(folder: DemoFolder, name: str, work: Callable[[], None]) -> None:
    """Do a step unless it is done, and say how long it took."""
    if name in folder.seconds():
        print("      done before", flush=True)
        return
    start = time.monotonic()
    work()
    seconds = time.monotonic() - start
    folder.finish(name, seconds)
    print(f"      {seconds:.0f} s", flush=True)


def _print_summary(folder: DemoFolder, table: str, mean: float) -> None:
    seconds = folder.seconds()
    print(f"\n{table}\n\nSeconds")
    for name, value in [*seconds.items(), ("together", sum(seconds.values()))]:
        print(f"  {name:<12}{value:6.0f}")
    print("\nLook at")
    radiographs = sorted(folder.store.glob("*.png"))
    for path in (*radiographs, folder.run / "progress.png", folder.overlay):
        print(f"  {path}")
    print(f"\nmean Dice: {mean:.2f}", flush=True)
