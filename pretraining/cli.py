"""The console commands: arguments in, one clear sentence and an exit code out.

Exit codes: 0 done, 1 done but some inputs failed, 2 nothing could be done, 130 / 143 stopped by SIGINT / SIGTERM.
"""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from pretraining.errors import UserError

logger = logging.getLogger("pretraining")


def _run(command: Callable[[list[str]], int], argv: list[str] | None) -> int:
    """Run one command; turn a `UserError` into its sentence on stderr and exit code 2."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)  # ours alone: other packages' notes are not for the user
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130


def preprocess(argv: list[str] | None = None) -> int:
    """`cads_preprocess INPUT STORE`: CT scans to a store of volumes at 1 mm and their radiographs."""
    return _run(_preprocess, argv)


def _preprocess(argv: list[str]) -> int:
    from pretraining.data.preprocess import default_processes, preprocess

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
    arguments = parser.parse_args(argv)
    return preprocess(arguments.input, arguments.store, arguments.np)


def positive_int(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return number
