"""Writing an encoder file, in either format."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nnunetv2_cads.encoder_file import BACKBONE_PREFIX, RECORD, TEACHER
from nnunetv2_cads.encoder_file.nnssl import nnssl_content
from nnunetv2_cads.encoder_file.record import EncoderRecord
from nnunetv2_cads.encoder_file.safe_loading import SAFETENSORS, safetensors_bytes

OURS, NNSSL = "cads", "nnssl"
"""Layouts of a file."""


def write_encoder_file(
    path: Path, state: Mapping[str, Tensor], record: EncoderRecord, suffix: str | None = None, layout: str = OURS
) -> None:
    """Write an encoder and its record; not atomically, the caller may give a temporary name.

    Args:
        path: of the new file.
        state: encoder key -> tensor (no prefix).
        record: of the pre-training; an empty one for weights of unknown origin.
        suffix: ``.safetensors`` or ``.pth``, which decides the format; by default that of ``path``.
        layout: `OURS`, or `NNSSL` (``.pth`` alone).

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    teacher = {BACKBONE_PREFIX + key: value for key, value in tensors.items()}
    if (path.suffix if suffix is None else suffix) == SAFETENSORS:
        content = safetensors_bytes(teacher, {RECORD: json.dumps(record.to_file())})
    else:
        buffer = io.BytesIO()
        ours = {TEACHER: teacher, RECORD: record.to_file()}
        torch.save(nnssl_content(tensors, record) if layout == NNSSL else ours, buffer)
        content = buffer.getbuffer()
    path.write_bytes(content)  # not by torch or safetensors, whose own errors would hide that the disk is full
