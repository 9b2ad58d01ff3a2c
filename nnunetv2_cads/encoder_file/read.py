"""Reading an encoder from an encoder file, a run's checkpoint, or a checkpoint in the published layout or nnssl's.

The layout is in this package's docstring. Only tensors and plain values are ever loaded, so a file from elsewhere
cannot run code (`safe_loading`).
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nnunetv2_cads.encoder_file import BACKBONE_PREFIX, RECORD, TEACHER
from nnunetv2_cads.encoder_file.checksums import CheckpointFileError, file_sha256
from nnunetv2_cads.encoder_file.nnssl import ADAPTATION, WEIGHTS, teacher_of
from nnunetv2_cads.encoder_file.record import ARCHITECTURE, PRETRAINING, EncoderRecord, RecordError, completed
from nnunetv2_cads.encoder_file.safe_loading import (
    SAFETENSORS,
    check_tensor,
    load_archive,
    load_safetensors,
)
from nnunetv2_cads.network_architecture.pvt_v2 import SUFFIX, PVTv2Encoder

ENCODER_FILES = "cads_encoder.pth or .safetensors"
ENCODER_VARIABLE = "nnUNet_cads_encoder"
"""Environment variable that names the encoder file to plan for and to fine-tune from."""


class EncoderFileError(ValueError):
    """The file cannot serve as an encoder; the message is one sentence that names it and says what to do."""


@dataclass(frozen=True)
class EncoderFile:
    """What a file holds of an encoder.

    Attributes:
        state: encoder key -> tensor (no prefix).
        record: of its pre-training.
        sha256: of the file.
        ignored: keys of ``teacher`` that are not the encoder's (the projection head).
    """

    state: dict[str, Tensor]
    record: EncoderRecord
    sha256: str
    ignored: tuple[str, ...] = ()

    @property
    def size(self) -> str:
        """The encoder's size as `PVTv2Encoder` takes it; that of the published encoder if the file does not say."""
        return (self.record.architecture or ARCHITECTURE).rpartition("-")[2]

    @property
    def takes_xrays(self) -> bool:
        """Whether it has weights for X-rays; an encoder that only restored CT, or was fine-tuned, has none."""
        return any(SUFFIX[2] in key for key in self.state)


@dataclass
class MatchReport:
    """How the keys of a file match those of an encoder: the keys in each of four groups."""

    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} matched"]
        groups = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.mismatched}
        for title, keys in groups.items():
            shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
            parts.append(f"{len(keys)} {title} ({shown})" if keys else f"0 {title}")
        return ", ".join(parts)


def record_to_plan_for() -> EncoderRecord:
    """What the pre-training of the encoder that `ENCODER_VARIABLE` names saw; of ours at 1 mm where it names none.

    Raises:
        EncoderFileError: as `read_encoder_file`.
    """
    path = os.environ.get(ENCODER_VARIABLE)
    return completed(read_encoder_file(path).record) if path else PRETRAINING


def read_encoder_file(path: str | os.PathLike) -> EncoderFile:
    """Read and check the encoder of a file.

    Raises:
        EncoderFileError: the file is missing, damaged, of another kind, would run code, holds no encoder of
            ordinary, finite tensors, or its record is malformed or of another format version.
    """
    path = Path(path)
    if path.is_dir():
        raise EncoderFileError(f"{path}: is a folder; give the path of a {ENCODER_FILES}")
    if not path.is_file():
        raise EncoderFileError(f"{path}: there is no such file; give the path of a {ENCODER_FILES}")
    try:
        content = _load_safetensors(path) if path.suffix == SAFETENSORS else load_archive(path)
        is_nnssl = isinstance(content, dict) and {WEIGHTS, ADAPTATION} <= content.keys()
        teacher = teacher_of(content) if is_nnssl else content.get(TEACHER) if isinstance(content, dict) else None
        if not isinstance(teacher, dict):
            raise CheckpointFileError(f"is not a CADS checkpoint: it has no '{TEACHER}' entry")
        state, ignored = {}, []
        for key, value in teacher.items():
            name = str(key).removeprefix("module.")
            if name.startswith(BACKBONE_PREFIX):
                value = check_tensor(name, value)
                if not value.isfinite().all():
                    raise CheckpointFileError(f"has NaN or infinite values under '{name}'")
                state[name.removeprefix(BACKBONE_PREFIX)] = value
            else:
                ignored.append(name)
        if not state:
            raise CheckpointFileError(f"'{TEACHER}' holds no '{BACKBONE_PREFIX}' tensors, so there is no encoder in it")
        record = EncoderRecord.from_file(content.get(RECORD))
        return EncoderFile(state, record, file_sha256(path), tuple(ignored))
    except (CheckpointFileError, RecordError) as error:
        raise EncoderFileError(
            f"{path}: {error}; give a {ENCODER_FILES}, the checkpoint_latest.pth of a cads_pretrain run, or a "
            "checkpoint in the published CADS layout"
        ) from error


def _load_safetensors(path: Path) -> dict[str, Any]:
    """The content of a ``.safetensors`` file as that of a ``.pth`` file."""
    tensors, text = load_safetensors(path)
    try:
        record = json.loads(text.get(RECORD, "{}"))
    except (ValueError, RecursionError):
        record = {}  # the tensors are what counts, and their names are checked
    return {TEACHER: tensors, RECORD: record}


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


def report_on(file: EncoderFile) -> MatchReport:
    """How a file's keys match those of an encoder of its size; one for CT alone, where it has no weights for X-rays."""
    dimensions = (2, 3) if file.takes_xrays else (3,)
    return compare_encoder_state(PVTv2Encoder(spatial_dims=dimensions, size=file.size), file.state)


def load_encoder(encoder: nn.Module, state: dict[str, Tensor]) -> MatchReport:
    """Copy the matching tensors of ``state`` into ``encoder`` and report all keys.

    An encoder of one dimension takes its half of a two-dimensional state: the other half is 'unexpected'.
    """
    report = compare_encoder_state(encoder, state)
    encoder.load_state_dict({key: state[key] for key in report.matched}, strict=False)
    return report
