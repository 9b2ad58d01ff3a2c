"""One line of `cads_doctor`'s report."""

from typing import NamedTuple

OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Finding(NamedTuple):
    """One line of the report; ``fix`` is a command that removes the problem, empty if there is none."""

    level: str
    text: str
    fix: str = ""
