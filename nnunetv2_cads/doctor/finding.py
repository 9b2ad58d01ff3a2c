"""One line of `cads_doctor`'s report."""

from typing import NamedTuple

OK, WARNING, PROBLEM = "ok", "warning", "problem"


class Finding(NamedTuple):
    """One line of the report; ``mend`` is a command that puts it right as it stands, empty where there is none."""

    level: str
    text: str
    mend: str = ""
