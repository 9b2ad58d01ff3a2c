"""`cads_doctor`'s check of nnU-Net's three folders."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from nnunetv2_cads.doctor.finding import OK, PROBLEM, WARNING, Finding

MADE_BY_NNUNET = ("nnUNet_preprocessed", "nnUNet_results")
"""Folders that nnU-Net makes where they do not exist."""


def check_folders() -> Iterator[Finding]:
    """nnU-Net's three folders: set; existing, or to be made by nnU-Net; writable."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(name)
        if not value:
            yield Finding(PROBLEM, f"{name} is not set", f'export {name}="$HOME/{name}"')
        elif name in MADE_BY_NNUNET and not Path(value).exists() and _can_be_made(Path(value)):
            yield Finding(OK, f"{name}: {value} will be made")
        elif not Path(value).is_dir():
            yield Finding(PROBLEM, f"{name}: {value} is not a folder", f"mkdir -p {shlex.quote(value)}")
        elif not os.access(value, os.W_OK):
            level = WARNING if name == "nnUNet_raw" else PROBLEM
            yield Finding(level, f"{name}: {value} is not writable", f"chmod u+w {shlex.quote(value)}")
        else:
            yield Finding(OK, f"{name}: {value}")


def _can_be_made(folder: Path) -> bool:
    """Whether the nearest folder that exists above this one can be written."""
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)
