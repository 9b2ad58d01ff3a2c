"""Opening files of tensors from anywhere: nothing in them runs, damage is detected, and memory stays bounded.

Checksums are compared before anything is loaded (`checksums`).
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_cads.encoder_file.checksums import CheckpointFileError, check_archive, tensors_sha256

SAFETENSORS = ".safetensors"
_DIGEST = "sha256"
_REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LONGEST_KEY = 200


def load_archive(path: Path, allowed: Sequence[Any] = (), mmap: bool = False) -> Any:
    """The content of a file that ``torch.save`` wrote: tensors and plain values only.

    Args:
        path: of the file.
        allowed: what else it may ask for, as `torch.serialization.safe_globals` takes it.
        mmap: leave tensors in the file until they are used.

    Raises:
        CheckpointFileError: it is damaged, of another kind, or asks to run code.
    """
    check_archive(path)
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
    if _DIGEST in text and text[_DIGEST] != tensors_sha256(tensors):
        raise CheckpointFileError("is damaged: the checksum in it does not match; copy it again")
    return tensors, text


def safetensors_bytes(tensors: Mapping[str, Tensor], text: Mapping[str, str]) -> bytes:
    """The content of a ``.safetensors`` file with contiguous tensors, text, and the tensors' SHA-256."""
    from safetensors.torch import save

    return save(dict(tensors), {"format": "pt", **text, _DIGEST: tensors_sha256(tensors)})
