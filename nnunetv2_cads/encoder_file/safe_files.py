"""Opening files of tensors from anywhere: nothing in them runs, damage is detected, and memory stays bounded.

``torch.save``'s files are zip archives whose members carry CRC-32 checksums. PyTorch writes these checksums but does
not compare them when it loads, so that is done here first. ``.safetensors`` files hold only tensors and text; those of
ours carry a SHA-256 of their tensors.
"""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SAFETENSORS = ".safetensors"
_DIGEST = "sha256"
_REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LONGEST_KEY = 200


class CheckpointFileError(ValueError):
    """The file cannot be used; the message says why, without the file's name."""


def load_archive(path: Path, allowed: Sequence[Any] = (), mmap: bool = False) -> Any:
    """The content of a file that ``torch.save`` wrote: tensors and plain values only.

    Args:
        path: of the file.
        allowed: what else it may ask for, as `torch.serialization.safe_globals` takes it.
        mmap: leave tensors in the file until they are used.

    Raises:
        CheckpointFileError: it is damaged, of another kind, or asks to run code.
    """
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise CheckpointFileError(
            f"holds Python objects{what}, which can run code when they are loaded; it was not loaded, take files of "
            "plain tensors only"
        ) from error
    except Exception as error:  # what a crafted file makes of torch.load cannot be listed
        raise CheckpointFileError("is damaged; copy it again") from error


def _check_archive(path: Path) -> None:
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


def check_tensor(key: str, value: Any) -> Tensor:
    """Return ``value`` if it is an ordinary tensor of real numbers that holds what its shape announces.

    Raises:
        CheckpointFileError: it is not.
    """
    if len(key) > _LONGEST_KEY or not key.isprintable():
        raise CheckpointFileError("has a key that is no name of a tensor")
    if type(value) not in (Tensor, torch.nn.Parameter):
        raise CheckpointFileError(f"has no tensor under '{key}' but {type(value).__name__}")
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _REAL:
        raise CheckpointFileError(f"has {value.dtype} values ({value.layout}, {value.device}) under '{key}'")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointFileError(f"announces {tuple(value.shape)} under '{key}' and holds less")
    return value.detach()


def load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the text of a ``.safetensors`` file.

    Raises:
        CheckpointFileError: it is damaged or of another kind.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            text = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no dict
    except Exception as error:  # the library's own type, and what torch raises for types it does not know
        raise CheckpointFileError("is not a safetensors file, or is damaged; copy it again") from error
    if _DIGEST in text and text[_DIGEST] != _digest(tensors):
        raise CheckpointFileError("is damaged: the checksum in it does not match; copy it again")
    return tensors, text


def safetensors_bytes(tensors: Mapping[str, Tensor], text: Mapping[str, str]) -> bytes:
    """The content of a ``.safetensors`` file with contiguous tensors, text, and the tensors' SHA-256."""
    from safetensors.torch import save

    return save(dict(tensors), {"format": "pt", **text, _DIGEST: _digest(tensors)})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
