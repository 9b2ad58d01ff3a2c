"""The console commands: arguments in, one clear sentence and an exit code out.

Exit codes: 0 done, 1 done but some inputs failed, 2 nothing could be done, 130 / 143 stopped by SIGINT / SIGTERM.
"""

import logging
import sys
from collections.abc import Callable

from pretraining.system.errors import UserError, environment_errors_as_sentences

logger = logging.getLogger("pretraining")


def run_command(command: Callable[[list[str]], int], argv: list[str] | None) -> int:
    """Run one command; turn a `UserError`, and what the machine refuses, into a sentence and exit code 2."""
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)  # ours alone: other packages' notes are not for the user
    logger.setLevel(logging.INFO)
    try:
        with environment_errors_as_sentences():
            return command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        return _say(error)
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    finally:
        logger.removeHandler(handler)


def _say(error: UserError) -> int:
    if str(error):  # without text: another process of the run speaks
        sys.stderr.write(f"error: {error}\n")
    return 2
