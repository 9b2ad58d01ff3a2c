"""The console commands: arguments in, one clear sentence and an exit code out.

Exit codes: 0 done, 1 done but some inputs failed, 2 nothing could be done, 130 / 143 stopped by SIGINT / SIGTERM.
"""

import argparse
import logging
import math
import sys
from collections.abc import Callable

from pretraining.system.errors import UserError, environment_errors_as_sentences

LOGGERS = tuple(map(logging.getLogger, ("pretraining", "nnunetv2_cads")))
"""Of our packages, whose messages alone are for the user."""


def run_command(command: Callable[[list[str]], int], argv: list[str] | None) -> int:
    """Run one command; turn a `UserError`, and errors of the operating system, into a sentence and exit code 2."""
    handler = logging.StreamHandler(sys.stderr)
    for logger in LOGGERS:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        with environment_errors_as_sentences():
            return command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        if str(error):  # without text, another rank of the run has already reported it
            sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    finally:
        for logger in LOGGERS:
            logger.removeHandler(handler)


def positive_int(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return int(text)


def positive_number(text: str) -> float:
    """An argument that is a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number
