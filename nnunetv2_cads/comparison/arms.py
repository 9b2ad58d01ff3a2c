"""The arms of a comparison: a network and what it starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.system.errors import UserError

SCRATCH, CADS = "scratch", "cads"
PLAIN, RESENC_M, RESENC_L = "plain", "resenc_m", "resenc_l"
"""Networks that plans describe: nnU-Net's default, and its residual encoders M and L."""


@dataclass(frozen=True)
class Arm:
    """One network and its start.

    Attributes:
        name: in flags, folders and the report.
        trainer: class that nnU-Net finds by name.
        network: one of the networks above, to be put into the plans; None where the trainer builds its own.
        encoder: file that the trainer starts from; None for random weights.
    """

    name: str
    trainer: str
    network: str | None = None
    encoder: Path | None = None


KNOWN = {
    SCRATCH: Arm(SCRATCH, "nnUNetTrainerCADS_scratch"),
    "nnUNetTrainer": Arm("nnUNetTrainer", "nnUNetTrainer", PLAIN),
    "nnUNetResEncM": Arm("nnUNetResEncM", "nnUNetTrainer", RESENC_M),
    "nnUNetResEncL": Arm("nnUNetResEncL", "nnUNetTrainer", RESENC_L),
}
"""The arms that need no file, by name. Any other name is of an encoder, or of a trainer with nnU-Net's default network.
"""


def make_arms(names: Sequence[str], encoders: Sequence[str]) -> tuple[Arm, ...]:
    """The arms that flags name, in their order; `SCRATCH`, with which all are compared, is always among them.

    Args:
        names: of the arms.
        encoders: ``FILE``, which is the arm `CADS`, or ``NAME=FILE``.

    Raises:
        UserError: two encoders of one name, one that no arm uses, or an arm whose encoder is missing.
    """
    files = _encoder_files(encoders)
    names = list(dict.fromkeys((SCRATCH, *names)))
    if CADS in names and CADS not in files:
        raise UserError(f"--arms {CADS} needs its encoder; give --encoder FILE")
    if unused := sorted(files.keys() - set(names)):
        raise UserError(f"--encoder {unused[0]}=...: no arm has this name; add {unused[0]} to --arms")
    return tuple(_arm(name, files.get(name)) for name in names)


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
        return Arm(name, "nnUNetTrainerCADS", encoder=encoder)
    return KNOWN.get(name) or Arm(name, name, None if "CADS" in name or "CoTr" in name else PLAIN)
