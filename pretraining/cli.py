"""The console commands: arguments in, one clear sentence and an exit code out.

Exit codes: 0 done, 1 done but some inputs failed, 2 nothing could be done, 130 / 143 stopped by SIGINT / SIGTERM.
"""

import logging
import sys
from collections.abc import Callable

from pretraining.errors import UserError

logger = logging.getLogger("pretraining")


def _run(command: Callable[[list[str]], int], argv: list[str] | None) -> int:
    """Run one command; turn a `UserError` into its sentence on stderr and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
