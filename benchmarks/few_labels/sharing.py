"""Several processes, one list of work: each piece is done by whoever takes it first."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WAIT_SECONDS = 5.0
"""Between looks at what other processes have not finished."""


@dataclass(frozen=True)
class Piece:
    """A piece of work.

    Attributes:
        result: the file that says that it is done.
        do: does it, and writes ``result``.
        needs: files of other pieces that must be there before it can begin.
    """

    result: Path
    do: Callable[[], object]
    needs: tuple[Path, ...] = ()

    @property
    def lock(self) -> Path:
        """Beside the result's folder, which may have to be empty at first."""
        folder = self.result.parent
        return folder.with_name(f".{folder.name}.{self.result.name}.lock")


@contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process holds the lock file ``path`` (one machine; the lock ends with its process)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def work_through(pieces: list[Piece], deadline: float) -> bool:
    """Do, in order, what neither is done nor held by another process, and what that waits for.

    Args:
        pieces: what is to be done; what a piece needs is among them or there.
        deadline: monotonic seconds after which nothing is begun.

    Returns:
        Whether all is done.
    """
    while remaining := [piece for piece in pieces if not piece.result.exists()]:
        begun = False
        for piece in remaining:
            if time.monotonic() > deadline:
                return False
            if not all(path.exists() for path in piece.needs):
                continue
            with held(piece.lock) as ours:
                if ours and not piece.result.exists():
                    piece.do()
                    begun = True
                    print(f"{time.strftime('%H:%M')} {piece.result.parent.name}/{piece.result.stem}", flush=True)
        if not begun:
            time.sleep(WAIT_SECONDS)
    return True
