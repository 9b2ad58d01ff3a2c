"""What is found out before the first training: whatever would stop one, and what would make a comparison unfair."""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch

from nnunetv2_cads.comparison.arms import NNSSL, Arm, check_encoder_file
from nnunetv2_cads.comparison.dataset import Dataset
from nnunetv2_cads.comparison.design import Design
from nnunetv2_cads.comparison.networks import plans_of_arm
from nnunetv2_cads.encoder_file.read import EncoderFileError, read_encoder_file, report_on
from nnunetv2_cads.encoder_file.record import preprocessing_differences
from pretraining.store.search import search_store
from pretraining.system.errors import UserError

logger = logging.getLogger(__name__)


def check_arms(arms: Iterable[Arm], dataset: Dataset) -> None:
    """Whether arms can be trained; warns where an encoder saw other data than the plans show.

    Raises:
        UserError: an encoder cannot be used, or a network cannot have the plans' patch.
    """
    for arm in arms:
        if arm.encoder:
            check_encoder_file(arm)
        plans_of_arm(dataset, arm)
        if arm.encoder and arm.network != NNSSL:
            _check_encoder(arm, dataset)


def check_leaks(design: Design, dataset: Dataset, store: Path) -> None:
    """Whether test cases were pre-trained on; warns of those of which it cannot be told.

    Raises:
        UserError: some were.
    """
    answer = search_store({case: dataset.images(case) for case in design.test}, store)
    leaked = [f"{case} is {match}" for case, match in answer.found.items() if match.is_sure]
    if leaked:
        raise UserError(
            f"{store}: {len(leaked)} of {len(design.test)} test cases were pre-trained on ({leaked[0]}); "
            "give --test with other cases, or an encoder that has not seen them"
        )
    for case, match in answer.found.items():
        logger.warning("warning: test case %s is %s", case, match)
    for case, reason in answer.unknown.items():
        logger.warning("warning: test case %s: whether it was pre-trained on cannot be told: %s", case, reason)
    for volume in answer.empty:
        logger.warning("warning: volume %s of %s shows too little of a body to be recognised", volume, store)


def check_device(device: str) -> None:
    """Whether there is such a device.

    Raises:
        UserError: there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("-device cuda: PyTorch sees no GPU; give -device cpu")


def _check_encoder(arm: Arm, dataset: Dataset) -> None:
    try:
        content = read_encoder_file(arm.encoder)
    except EncoderFileError as error:
        raise UserError(str(error)) from error
    report = report_on(content)
    if report.mismatched or report.missing:
        raise UserError(f"{arm.encoder}: does not fit PVT-UNet's encoder ({report}); give a cads_encoder.pth")
    configuration = dataset.plans["configurations"][dataset.configuration]
    for difference in preprocessing_differences(
        content.record,
        configuration["spacing"],
        configuration["normalization_schemes"],
        dataset.plans["foreground_intensity_properties_per_channel"],
        dataset.description.get("channel_names"),
    ):
        logger.warning("warning: %s and %s differ. %s", arm.name, dataset.plans_name, difference.text)
