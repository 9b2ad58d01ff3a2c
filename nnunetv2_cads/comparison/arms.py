"""The arms of a comparison: a network and what it starts from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunetv2_cads.comparison.flags import CADS, RESENC_ARM, SCRATCH, STOCK
from nnunetv2_cads.comparison.nnssl_resenc import resenc_architecture
from nnunetv2_cads.comparison.trainers import find_trainer, has_network_of_ours
from nnunetv2_cads.encoder_file.checksums import file_sha256
from pretraining.system.errors import UserError

PLAIN, RESENC_M, NNSSL = "plain", "resenc_m", "nnssl"
"""Networks that plans describe: nnU-Net's default, its residual encoder M (at one patch, L and XL are the same), and
the residual encoder that a checkpoint of nnssl's names."""


@dataclass(frozen=True)
class Arm:
    """One network and its start.

    Attributes:
        name: in flags, folders and the report.
        trainer: class that nnU-Net finds by name.
        network: one of the networks above, to be put into the plans; None where the trainer builds its own.
        encoder: file that the trainer starts from; None for random weights.
        sha256: of that file.
        settings: values of the trainer's settings, where they are not its own.
    """

    name: str
    trainer: str
    network: str | None = None
    encoder: Path | None = None
    sha256: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


DECIDED_ELSEWHERE = ("mirroring", "use_pretrained_encoder")
"""Settings of our trainers that follow from other flags."""
FROM_ENCODER = "nnUNetTrainerCADS"
"""The trainer of every encoder."""
KNOWN = {
    SCRATCH: Arm(SCRATCH, "nnUNetTrainerCADS_scratch"),
    "CoTr": Arm("CoTr", "nnUNetTrainerCoTr"),
    STOCK: Arm(STOCK, STOCK, PLAIN),
    RESENC_ARM: Arm(RESENC_ARM, STOCK, RESENC_M),
}
"""The arms that need no file, by name. Any other name is of an encoder, of a trainer with nnU-Net's default network, or
`RESENC_ARM` with what a trainer's name has after `STOCK`.
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


def with_settings(arms: Sequence[Arm], flags: Sequence[str]) -> tuple[Arm, ...]:
    """Arms with settings of their trainers.

    Args:
        arms: without settings.
        flags: ``NAME=VALUE``, for every arm whose trainer has this setting, or ``ARM:NAME=VALUE``.

    Raises:
        UserError: a flag is none of these, or no such arm has the setting.
    """
    settings: dict[str, dict[str, Any]] = {arm.name: {} for arm in arms}
    known = {arm.name: known_settings(arm) for arm in arms}
    for flag in flags:
        target, name, value = _parsed(flag)
        named = [arm.name for arm in arms if target in (None, arm.name) and name in known[arm.name]]
        if not named:
            choices = sorted({name for names in known.values() for name in names})
            raise UserError(f"--set {flag}: no such arm has this setting; the settings are {', '.join(choices)}")
        for arm_name in named:
            default = known[arm_name][name]
            if type(value) not in ((float, int) if isinstance(default, float) else (type(default),)):
                raise UserError(f"--set {flag}: give a value like {json.dumps(default)}")
            settings[arm_name][name] = type(default)(value)
    return tuple(replace(arm, settings=settings[arm.name]) for arm in arms)


def known_settings(arm: Arm) -> dict[str, Any]:
    """What `with_settings` can set, with the trainer's own values: those of our trainers that make no other arm."""
    defaults = getattr(find_trainer(arm.trainer), "defaults", {})
    return {name: value for name, value in defaults.items() if name not in DECIDED_ELSEWHERE}


def _parsed(flag: str) -> tuple[str | None, str, Any]:
    setting, separator, text = flag.partition("=")
    target, _, name = setting.rpartition(":")
    try:
        value = json.loads(text)
    except ValueError:
        separator = ""
    if not separator or not name:
        raise UserError(f"--set {flag}: give NAME=NUMBER, NAME=true, NAME=false, or one of these after ARM:")
    return target or None, name, value


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
        start = (STOCK, NNSSL) if resenc_architecture(encoder) else (FROM_ENCODER, None)
        return Arm(name, *start, encoder, file_sha256(encoder))
    if name in KNOWN:
        return KNOWN[name]
    if name.startswith(RESENC_ARM):
        return Arm(name, _trainer_of_plans(STOCK + name.removeprefix(RESENC_ARM)), RESENC_M)
    return Arm(name, name, None if has_network_of_ours(find_trainer(name)) else PLAIN)


def _trainer_of_plans(name: str) -> str:
    """A trainer's name, if it builds the network that the plans describe."""
    if has_network_of_ours(find_trainer(name)):
        raise UserError(f"{name}: has a network of its own and cannot train {RESENC_ARM}; name it alone")
    return name


def check_encoder_file(arm: Arm) -> None:
    """Whether an arm's encoder file is there, with the weights that the comparison began with.

    Raises:
        UserError: it is not.
    """
    if not arm.encoder.is_file():
        raise UserError(f"{arm.encoder}: is gone; put it back, or name its new place with --encoder {arm.name}=FILE")
    if file_sha256(arm.encoder) != arm.sha256:
        raise UserError(
            f"{arm.encoder}: is not the file that arm {arm.name} began with; put that back, or compare this one under "
            "a new name with --encoder NAME=FILE"
        )
