"""Finding the cases of a download: which image and which label map belong together, and what is missing."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_cads.tasks.sources import Source
from pretraining.ct.find_scans import visible_files
from pretraining.ct.nifti import SUFFIXES
from pretraining.system.errors import UserError

LISTING = "dataset.json"
"""Of the Decathlon: names the cases of a task."""


@dataclass(frozen=True)
class Case:
    """One case, or one scan without labels: its name in the dataset, its image and its label map."""

    name: str
    image: Path
    label: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is made from."""
        return (self.image,) if self.label is None else (self.image, self.label)


@dataclass(frozen=True)
class Found:
    """What a download holds.

    Attributes:
        cases: those that can be tried, with labels first.
        left_out: the reason for each case that cannot, by its name.
        missing: published cases with labels of which there is no file.
    """

    cases: tuple[Case, ...]
    left_out: dict[str, str]
    missing: tuple[str, ...]


def find_cases(source: Source, folder: Path) -> Found:
    """Find the cases of a task in ``folder`` and all below it. Hidden files, such as macOS's ``._*``, are passed over.

    Raises:
        UserError: no such folder, or it holds no image with labels of this task.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of the unpacked download as SOURCE")
    images, labels, tests = _matching_files(source, folder)
    if not images:
        raise UserError(
            f"{folder}: holds no image of {source.title} ({source.layout}); unpack the download and give its folder"
        )
    pairs = {name: (images.get(name, []), labels.get(name, [])) for name in images.keys() | labels.keys()}
    reasons = {name: _incomplete(folder, *pair) for name, pair in pairs.items()}
    reasons |= {name: _several(paths) if len(paths) > 1 else "" for name, paths in tests.items()}
    cases = [Case(name, *(paths[0] for paths in pairs[name])) for name in _sorted(pairs) if not reasons[name]]
    cases += [Case(name, tests[name][0]) for name in _sorted(tests) if not reasons[name]]
    left_out = {name: reasons[name] for name in _sorted(reasons) if reasons[name]}
    published = set(source.names) or _listed(source, images)
    return Found(tuple(cases), left_out, tuple(_sorted(published - pairs.keys())))


def _matching_files(source: Source, folder: Path) -> list[dict[str, list[Path]]]:
    """The images with labels, the label maps, and the images without labels, by the names of their cases."""
    suffix = "|".join(map(re.escape, SUFFIXES))
    kinds = [re.compile(rf"(?:.*/)?{pattern}(?:{suffix})") for pattern in (source.image, source.label, source.test)]
    formats = (source.case_name, source.case_name, "{}")
    found: list[dict[str, list[Path]]] = [defaultdict(list) for _ in kinds]
    for path in visible_files(folder):
        for kind, name, files in zip(kinds, formats, found, strict=True):
            if match := kind.fullmatch(path.absolute().as_posix()):
                files[name.format(match[1])].append(path)
    return found


def _incomplete(folder: Path, images: list[Path], labels: list[Path]) -> str:
    """Why image and labels make no case; empty if they do."""
    if len(images) > 1 or len(labels) > 1:
        return _several(images if len(images) > 1 else labels)
    if not labels:
        return f"{images[0]}: has no label map beside it; download the label maps into {folder}, too"
    if not images:
        return f"{labels[0]}: has no image; download the images into {folder}, too"
    return ""


def _several(paths: list[Path]) -> str:
    return f"{paths[0]}: is there {len(paths)} times (also as {paths[1]}); remove all but one"


def _listed(source: Source, images: dict[str, list[Path]]) -> set[str]:
    """The names that the Decathlon's listings beside the images give; none where there is no sound listing."""
    kind = re.compile(rf"(?:.*/)?{source.image}(?:\.nii)?(?:\.gz)?")
    names: set[str] = set()
    for folder in {path.absolute().parents[1] for paths in images.values() for path in paths}:
        try:
            entries = json.loads((folder / LISTING).read_text(encoding="utf-8"))["training"]
            matches = [kind.fullmatch(str(entry["image"])) for entry in entries]
        except (OSError, ValueError, LookupError, TypeError):
            continue  # only names could be told from it; the published number is known without it
        names |= {match[1] for match in matches if match}
    return names


def _sorted(names: Iterable[str]) -> list[str]:
    """Names in order, with numbers in them by their value."""
    return sorted(names, key=lambda name: (re.sub(r"\d", "", name), [int(n) for n in re.findall(r"\d+", name)]))
