"""Reading encoder weights from ``cads_encoder.pth`` or a checkpoint in the published layout.

Both are ``torch.save``d dicts with ``teacher`` = {``backbone.<key>``: tensor}. Only tensors and plain values are
ever loaded (``weights_only=True``), so a file from elsewhere cannot run code.
"""

import hashlib
import os
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TEACHER = "teacher"
RECORD = "cads"
BACKBONE_PREFIX = "backbone."


class EncoderCheckpointError(ValueError):
    """The file cannot serve as an encoder; the message is one sentence that names it and says what to do."""


@dataclass(frozen=True)
class EncoderCheckpoint:
    """What a checkpoint holds for the encoder.

    Attributes:
        state: encoder key -> tensor (no prefix).
        record: what pre-training saw (format, crop size, spacing_mm, clip_hu, ...); empty for the published layout.
        sha256: of the file.
        ignored: keys of ``teacher`` that are not the encoder's (the projection head).
    """

    state: dict[str, Tensor]
    record: dict[str, Any]
    sha256: str
    ignored: tuple[str, ...] = ()


@dataclass
class MatchReport:
    """How the keys of a file met those of an encoder."""

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} matched"]
        for name in ("missing", "unexpected", "mismatched"):
            keys = getattr(self, name)
            shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
            parts.append(f"{len(keys)} {name.replace('mismatched', 'of another shape')}" + (f" ({shown})" * bool(keys)))
        return ", ".join(parts)


def read_encoder_checkpoint(path: str | os.PathLike) -> EncoderCheckpoint:
    """Read the encoder of a file.

    Raises:
        EncoderCheckpointError: the file is missing, is not a torch checkpoint, would run code, or holds no encoder.
    """
    path = Path(path)
    if not path.is_file():
        raise EncoderCheckpointError(f"{path}: there is no such file; give the path of a cads_encoder.pth")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile, OSError) as error:
        raise EncoderCheckpointError(
            f"{path}: is not a checkpoint of plain tensors, or is damaged; give a cads_encoder.pth or a checkpoint "
            "in the published CADS layout"
        ) from error
    teacher = content.get(TEACHER) if isinstance(content, dict) else None
    if not isinstance(teacher, dict):
        raise EncoderCheckpointError(
            f"{path}: is no CADS checkpoint, it has no '{TEACHER}' entry; give a cads_encoder.pth, the "
            "checkpoint_latest.pth of a cads_pretrain run, or a checkpoint in the published CADS layout"
        )
    state, ignored = {}, []
    for key, value in teacher.items():
        name = str(key).removeprefix("module.")
        if name.startswith(BACKBONE_PREFIX) and isinstance(value, Tensor):
            state[name.removeprefix(BACKBONE_PREFIX)] = value
        else:
            ignored.append(str(key))
    if not state:
        raise EncoderCheckpointError(
            f"{path}: '{TEACHER}' holds no '{BACKBONE_PREFIX}' tensors, so there is no encoder in it; "
            "give a cads_encoder.pth or the checkpoint_latest.pth of a cads_pretrain run"
        )
    record = content.get(RECORD)
    return EncoderCheckpoint(state, record if isinstance(record, dict) else {}, file_sha256(path), tuple(ignored))


def compare_encoder_state(encoder: nn.Module, state: dict[str, Tensor]) -> MatchReport:
    """Report which keys of ``state`` fit ``encoder`` (without loading anything)."""
    own = encoder.state_dict()
    report = MatchReport(missing=[key for key in own if key not in state])
    for key, value in state.items():
        if key not in own:
            report.unexpected.append(key)
        elif own[key].shape != value.shape:
            report.mismatched.append(f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}")
        else:
            report.matched.append(key)
    return report


def load_encoder(encoder: nn.Module, state: dict[str, Tensor]) -> MatchReport:
    """Copy the matching tensors of ``state`` into ``encoder`` and report all keys.

    An encoder of one dimension takes its half of a two-dimensional state: the other half is 'unexpected'.
    """
    report = compare_encoder_state(encoder, state)
    encoder.load_state_dict({key: state[key] for key in report.matched}, strict=False)
    return report


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
