"""The arms of a comparison: a network and what it starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_cads.comparison.trainers import brings_its_network, find_trainer
from nnunetv2_cads.encoder_file.checksums import file_sha256
from pretraining.system.errors import UserError

SCRATCH, CADS = "scratch", "cads"
PLAIN, RESENC_M = "plain", "resenc_m"
"""Networks that plans describe: nnU-Net's default, and its residual encoder M; at one patch, L and XL are the same."""


@dataclass(frozen=True)
class Arm:
    """One network and its start.

    Attributes:
        name: in flags, folders and the report.
        trainer: class that nnU-Net finds by name.
        network: one of the networks above, to be put into the plans; None where the trainer builds its own.
        encoder: file that the trainer starts from; None for random weights.
        sha256: of that file.
    """

    name: str
    trainer: str
    network: str | None = None
    encoder: Path | None = None
    sha256: str | None = None


FROM_ENCODER = "nnUNetTrainerCADS"
"""The trainer of every encoder."""
KNOWN = {
    SCRATCH: Arm(SCRATCH, "nnUNetTrainerCADS_scratch"),
    "CoTr": Arm("CoTr", "nnUNetTrainerCoTr"),
    "nnUNetTrainer": Arm("nnUNetTrainer", "nnUNetTrainer", PLAIN),
    "nnUNetResEncM": Arm("nnUNetResEncM", "nnUNetTrainer", RESENC_M),
}
"""The arms that need no file, by name. Any other name is of an encoder, or of a trainer with nnU-Net's default network.
"""


def make_arms(names: Sequence[str], encoders: Sequence[str]) -> tuple[Arm, ...]:
    """The arms that flags name, in their order; `SCRATCH`, with which all are compared, is always among them.

    Args:
        names: of the arms, beside those that encoders make.
        encoders: ``FILE``, which is the arm `CADS`, or ``NAME=FILE``.

    Raises:
        UserError: two encoders of one name, an arm whose encoder is missing, or a trainer that nnU-Net does not find.
    """
    files = _encoder_files(encoders)
    for name in names:
        if name not in files and (name == CADS or (name.startswith(FROM_ENCODER) and SCRATCH not in name)):
            raise UserError(f"--arms {name} needs its encoder; give --encoder FILE or NAME=FILE instead")
    return tuple(_arm(name, files.get(name)) for name in dict.fromkeys((SCRATCH, *names, *files)))


def _encoder_files(encoders: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in encoders:
        name, separator, file = text.partition("=")
        name, path = (name, Path(file)) if separator and not Path(text).exists() else (CADS, Path(text))
        if name in KNOWN or not name.isidentifier():
            raise UserError(f"--encoder {text}: {name!r} cannot be an encoder's name; choose another word")
        if name in files:
            raise UserError(f"--encoder {text}: there are two encoders of the name {name}; give NAME=FILE for others")
        if not path.is_file():
            raise UserError(f"{path}: no such encoder file; give the cads_encoder.pth of a run")
        files[name] = path.absolute()
    return files


def _arm(name: str, encoder: Path | None) -> Arm:
    if encoder:
        return Arm(name, FROM_ENCODER, encoder=encoder, sha256=file_sha256(encoder))
    return KNOWN.get(name) or Arm(name, name, None if brings_its_network(find_trainer(name)) else PLAIN)
