"""Checks a checkpoint of nnU-Net before nnU-Net unpickles it: one that would run code, or is damaged, is refused.

nnU-Net loads with ``weights_only=False``, since its log holds NumPy's numbers. Here the same file is loaded first with
these allowed and nothing else. A file that passes asks for nothing else when nnU-Net loads it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunetv2_cads.encoder_file.safe_loading import CheckpointFileError, load_archive

_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS = (
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float16", "float32", "float64")),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),  # as NumPy 1 called it
)
"""What unpickling one of NumPy's numbers asks for."""


class NnunetCheckpointError(ValueError):
    """The checkpoint cannot be loaded; the message is one sentence that names it and says what to do."""


@dataclass(frozen=True)
class NnunetCheckpoint:
    """What has to fit a trainer.

    Attributes:
        shapes: key of the network -> shape.
        group_sizes: number of tensors in each parameter group of the optimizer.
        trainer_name: the class that wrote it.
    """

    shapes: dict[str, tuple[int, ...]]
    group_sizes: list[int]
    trainer_name: str


def read_nnunet_checkpoint(file: str) -> NnunetCheckpoint:
    """Read what has to fit a trainer. Tensors stay in the file.

    Raises:
        NnunetCheckpointError: it is missing, damaged, not a checkpoint of nnU-Net, or would run code.
    """
    path = Path(file)
    if not path.is_file():
        raise NnunetCheckpointError(
            f"{file}: there is no such file; train first, or leave out --val_best if there is a checkpoint_final.pth"
        )
    try:
        content = load_archive(path, _NUMBERS, mmap=True)
    except CheckpointFileError as error:
        raise NnunetCheckpointError(
            f"{file}: {error}; move it away, then --c resumes from checkpoint_latest.pth or checkpoint_best.pth"
        ) from error
    try:
        return NnunetCheckpoint(
            {key: tuple(value.shape) for key, value in content["network_weights"].items()},
            [len(group["params"]) for group in content["optimizer_state"]["param_groups"]],
            str(content["trainer_name"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise NnunetCheckpointError(
            f"{file}: is not a checkpoint of nnU-Net; move it away, then --c resumes from checkpoint_latest.pth or "
            "checkpoint_best.pth"
        ) from error
