"""`cads_compare`: trains, from several starts and on few labelled cases, and says what each start adds to Dice."""

import sys

from nnunetv2_cads.comparison.flags import flags_of_command
from pretraining.system.command import run_command


def main(argv: list[str] | None = None) -> int:
    """`cads_compare OUT -d ID --encoder FILE`; exit code 0: done, 1: some trainings failed, 2: nothing was done."""
    return run_command(_command, argv)


def _command(argv: list[str]) -> int:
    arguments = flags_of_command().parse_args(argv)
    from nnunetv2_cads.comparison.run import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
