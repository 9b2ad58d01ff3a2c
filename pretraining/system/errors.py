"""The error that users see as one sentence instead of a traceback, and sentences for errors of the system."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can fix: the message names the file or setting, what is wrong and what to do."""


_ADVICE = {
    errno.ENOSPC: "make room and start again",
    errno.EDQUOT: "make room, or ask for a larger quota, and start again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) and start again",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EMFILE: "raise the limit on open files (ulimit -n 4096) and start again",
    errno.ENFILE: "the whole machine has too many files open; close some and start again",
    errno.ENOMEM: "free memory, or use fewer processes",
    errno.ENOENT: "the file or its folder is gone; restore it and start again",
    errno.ENOTDIR: "the file or its folder is gone; restore it and start again",
    errno.EIO: "the disk or file server fails; check it and start again",
    errno.ESTALE: "the file server has lost it; check it and start again",
    errno.ENOTCONN: "the file server does not answer; check it and start again",
    errno.ENODEV: "the disk is gone; attach it again and start again",
}
"""What to do about an error of the operating system."""

_DISK_ERRORS = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV)


def is_disk_error(error: OSError) -> bool:
    """Whether a disk or file server fails, so that what it holds may be sound."""
    return error.errno in _DISK_ERRORS


def reason_and_advice(error: OSError) -> str:
    """What an error is and what to do about it; `is_environment_error` is true for it."""
    return f"{os.strerror(error.errno)}; {_ADVICE[error.errno]}"


def is_environment_error(error: OSError) -> bool:
    """Whether an error is of the machine (no room, no permission, no handles), not a fault of the program."""
    return error.errno in _ADVICE


def environment_error(error: OSError, path: str | os.PathLike | None = None, after: str = "") -> UserError:
    """The sentence for such an error.

    Args:
        error: `is_environment_error` is true for it.
        path: the file, if the error does not name it.
        after: what else to do, put after the advice.
    """
    name = os.fsdecode(path or error.filename or "a file")
    return UserError(f"{name}: {reason_and_advice(error)}{after}")


@contextmanager
def environment_errors_as_sentences() -> Iterator[None]:
    """Turn errors of the machine in the block into a `UserError`."""
    try:
        yield
    except OSError as error:
        if not is_environment_error(error):
            raise
        raise environment_error(error) from error
