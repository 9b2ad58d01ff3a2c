"""The checksums of files of tensors, and their comparison.

``torch.save``'s files are zip archives whose members carry CRC-32 checksums. PyTorch writes these checksums but does
not compare them when it loads. ``.safetensors`` files of ours carry a SHA-256 of their tensors.
"""

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


class CheckpointFileError(ValueError):
    """The file cannot be used; the message says why, without the file's name."""


def check_archive(path: Path) -> None:
    """Compare the checksums, and refuse members that are larger than the file, before anything is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise CheckpointFileError("has compressed parts, which torch.save never writes; it was not loaded")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise CheckpointFileError("announces more than it holds; it was not loaded")
            damaged = archive.testzip()
    except CheckpointFileError:
        raise
    except PermissionError:
        raise CheckpointFileError("cannot be read, permission denied; check its permissions") from None
    except Exception as error:  # zipfile, too, raises all kinds of types
        raise CheckpointFileError("is not a checkpoint of plain tensors, or is damaged") from error
    if damaged:
        raise CheckpointFileError("is damaged: a checksum in it does not match; copy it again")


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
