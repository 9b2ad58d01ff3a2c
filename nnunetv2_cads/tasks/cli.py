"""`cads_tasks convert TASK SOURCE`: a task of the paper as an nnU-Net raw dataset. The recipes: docs/tasks.md."""

import argparse
import sys
from pathlib import Path

from nnunetv2_cads.nnunet_version import require_nnunet
from nnunetv2_cads.tasks.conversion import convert
from nnunetv2_cads.tasks.sources import SOURCES
from pretraining.system.command import positive_int, run_command
from pretraining.system.machine import default_processes


def main(argv: list[str] | None = None) -> int:
    """Convert a download; returns the exit code, as of `convert`, or 2: nothing was done, with one sentence."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = _parser().parse_args(argv)
    require_nnunet()
    source = SOURCES[arguments.task]
    return convert(source, arguments.source, arguments.d or source.dataset_id, arguments.np)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cads_tasks", description="The tasks of the paper (an assumption) for nnU-Net.", allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="convert")
    command = commands.add_parser(
        "convert",
        help="make an nnU-Net raw dataset of a download",
        description="Make an nnU-Net raw dataset of a challenge's download, which stays as it is. Files that can be "
        "taken as they are get a second name there (hard link). Can be stopped; the same command resumes.",
        allow_abbrev=False,
    )
    command.add_argument("task", metavar="TASK", choices=SOURCES, help=", ".join(SOURCES))
    command.add_argument("source", metavar="SOURCE", type=Path, help="folder of the unpacked download")
    command.add_argument("-d", metavar="ID", type=positive_int, help="number of the dataset (default: the task's own)")
    command.add_argument(
        "-np", metavar="N", type=positive_int, default=default_processes(), help="processes (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
