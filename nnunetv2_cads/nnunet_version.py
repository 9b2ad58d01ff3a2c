"""The oldest nnU-Net that this package works with, and the check for it."""

import importlib.metadata

OLDEST_NNUNET = (2, 8, 1)


class NnunetTooOld(SystemExit, RuntimeError):
    """Ends a command with only the sentence and exit code 1."""


def version_numbers(version: str) -> tuple[int, ...]:
    """(2, 8, 1) for "2.8.1"; parts that are not numbers are left out."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def require_nnunet() -> None:
    """Check the installed nnU-Net.

    Raises:
        NnunetTooOld: it is older than `OLDEST_NNUNET`.
    """
    version = importlib.metadata.version("nnunetv2")
    if version_numbers(version) < OLDEST_NNUNET:
        oldest = ".".join(map(str, OLDEST_NNUNET))
        raise NnunetTooOld(
            f"nnunetv2-cads needs nnU-Net {oldest} or newer, but {version} is installed: "
            f"pip install --upgrade 'nnunetv2>={oldest}'"
        )
