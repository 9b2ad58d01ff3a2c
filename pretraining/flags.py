"""The settings as flags of `cads_pretrain`, and which of them a run has no use for."""

import argparse
from collections.abc import Iterable

from pretraining.config import SETTINGS, PretrainConfig
from pretraining.system.errors import UserError

OF_DISTILLATION = (
    "crop_size", "common_crop_scale", "view_scale", "mirror_probability", "xray", "intensity", "uniform_sampling",
    "sampling_patch_size", "xray_weight", "stage_weights",
)  # fmt: skip
"""Settings that change nothing in a run that does not distil."""


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per setting; a flag that is not given leaves no trace in the arguments."""
    groups = {}
    for name, (section, spec) in SETTINGS.items():
        if section not in groups:
            groups[section] = parser.add_argument_group(f"{section} settings")
        default = spec.default
        kind = {"dest": name, "default": argparse.SUPPRESS}
        if isinstance(default, bool):
            kind |= {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, tuple):
            kind |= {"type": type(default[0]), "nargs": len(default), "metavar": "N"}
            default = " ".join(map(str, default))
        else:
            kind |= {"type": type(default), "choices": spec.metadata["rule"].choices}
            if not kind["choices"]:
                kind |= {"metavar": "N" if isinstance(default, (int, float)) else "NAME"}
        flag = "--" + name.replace("_", "-")
        groups[section].add_argument(
            flag, help=f"{spec.metadata['doc']} (default: {default})".replace("%", "%%"), **kind
        )


def check_use(given: Iterable[str], config: PretrainConfig) -> None:
    """Refuse flags that would change nothing.

    Args:
        given: names of the settings that were given as flags.
        config: what they and the preset make.

    Raises:
        UserError: one of them is only read by a part that the run does not have.
    """
    if config.distils:
        return
    for name in OF_DISTILLATION:
        if name in given:
            raise UserError(
                f"--{name.replace('_', '-')} is of CADS's distillation, which this run does not have; leave it out, or "
                "give --preset cads or published"
            )
