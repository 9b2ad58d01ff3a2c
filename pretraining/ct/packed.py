"""Files and slices in little memory, for archives of tens of millions of slices.

A slice's header and path take more than a kilobyte as Python objects. What the slices of one series have in common is
written once where they are compressed together: some fifty bytes are left of each.
"""

import os
import pickle
import zlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
PACKED_AT_ONCE = 4096


@dataclass(frozen=True)
class PackedPaths(Sequence[Path]):
    """Paths as one text, since a `Path` of its own takes half a kilobyte. They are made when they are asked for."""

    text: str

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "PackedPaths":
        """Pack paths; those that follow each other in one folder share its name."""
        lines, before = [], None
        for path in paths:
            folder, name = str(path.parent), path.name
            lines.append(name if folder == before else os.path.join(folder, name))  # noqa: PTH118 (keeps "./")
            before = folder
        return cls("\0".join(lines))  # which no path can have in it

    def __len__(self) -> int:
        return self.text.count("\0") + 1 if self.text else 0

    def __getitem__(self, index):
        return tuple(self)[index]

    def __iter__(self) -> Iterator[Path]:
        folder = None
        for line in self.text.split("\0") if self.text else ():
            path = folder / line if folder and "/" not in line else Path(line)
            folder = path.parent
            yield path


class PackedGroups(Generic[T]):
    """Things in groups, packed in memory as they are added.

    Args:
        key: which group a thing belongs to.
    """

    def __init__(self, key: Callable[[T], Hashable]) -> None:
        self._key = key
        self._new: list[T] = []
        self._packed: dict[Hashable, list[bytes]] = defaultdict(list)
        self._count = 0

    def add(self, thing: T) -> None:
        """Add one; it must pickle."""
        self._new.append(thing)
        self._count += 1
        if len(self._new) == PACKED_AT_ONCE:
            self._pack()

    def __len__(self) -> int:
        """Number of things in all groups."""
        return self._count

    def groups(self) -> Iterator[list[T]]:
        """The things of each group, both in the order in which they came; the packed ones are given up on the way."""
        self._pack()
        while self._packed:
            pieces = self._packed.pop(next(iter(self._packed)))
            yield [thing for piece in pieces for thing in pickle.loads(zlib.decompress(piece))]

    def _pack(self) -> None:
        groups: dict[Hashable, list[T]] = defaultdict(list)
        for thing in self._new:
            groups[self._key(thing)].append(thing)
        for key, things in groups.items():
            self._packed[key].append(zlib.compress(pickle.dumps(things, pickle.HIGHEST_PROTOCOL), 1))
        self._new.clear()
