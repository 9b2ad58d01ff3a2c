"""`cads_doctor`'s check of a dataset against the store of a pre-training: what is tested on must not be in it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from nnunetv2_cads.doctor.finding import OK, PROBLEM, WARNING, Finding

MAX_LINES = 10
"""Of one kind."""
TEST, TRAINING = "imagesTs", "imagesTr"


def check_leaks(number: int | None, store: Path) -> Iterator[Finding]:
    """Whether cases of a dataset are in a store: for test cases a problem, for training cases a warning.

    Args:
        number: ID of the dataset, in nnUNet_raw.
        store: folder of the store.
    """
    from pretraining.probing.cases import find_raw_dataset
    from pretraining.store.search import search_store
    from pretraining.system.errors import UserError

    if number is None:
        yield Finding(PROBLEM, "--store is compared with a dataset; give its ID, too: -d ID")
        return
    try:
        dataset = find_raw_dataset(number)
        cases = _cases(dataset)
        answer = search_store(cases, store)
    except UserError as error:
        yield Finding(PROBLEM, str(error))
        return
    sure = {case: f"{case} is {match}" for case, match in answer.found.items() if match.is_sure}
    perhaps = [f"{case} is {match}" for case, match in answer.found.items() if not match.is_sure]
    yield from _findings(PROBLEM, [line for case, line in sure.items() if case.startswith(TEST)])
    training = [line for case, line in sure.items() if case.startswith(TRAINING)]
    yield from _findings(WARNING, training)
    if training:
        text = "pre-training on the images of training cases, without labels, is legitimate; but as validation cases "
        yield Finding(WARNING, f"{text}they do not stand for unseen scans")
    yield from _findings(WARNING, perhaps)
    yield from _findings(WARNING, [f"{case} cannot be told: {reason}" for case, reason in answer.unknown.items()])
    yield from _findings(
        WARNING, [f"volume {name} shows too little of a body to be recognised" for name in answer.empty]
    )
    if not answer.found:
        told = len(cases) - len(answer.unknown)
        how = f"{answer.volumes} volumes; {told} of {len(cases)} cases compared by voxels and by soft tissue"
        yield Finding(OK, f"no case of {dataset.name} was found in {store} ({how})")


def _findings(level: str, lines: Sequence[str]) -> Iterator[Finding]:
    for line in lines[:MAX_LINES]:
        yield Finding(level, line)
    if len(lines) > MAX_LINES:
        yield Finding(level, f"and {len(lines) - MAX_LINES} more")


def _cases(dataset: Path) -> dict[str, list[Path]]:
    """The files of each case, one for each channel, by ``imagesTs/name`` or ``imagesTr/name``.

    Raises:
        UserError: there are none, or dataset.json cannot be read.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    from pretraining.system.errors import UserError

    cases: dict[str, list[Path]] = {}
    try:
        description = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
        ending = description["file_ending"]
        for folder in (TEST, TRAINING):
            for path in sorted((dataset / folder).glob(f"*_[0-9][0-9][0-9][0-9]{ending}")):
                cases.setdefault(f"{folder}/{path.name.removesuffix(ending)[:-5]}", []).append(path)
        if "dataset" in description:  # names the files of the training cases, wherever they are
            for case, entry in get_filenames_of_train_images_and_targets(str(dataset), description).items():
                cases[f"{TRAINING}/{case}"] = [Path(image) for image in entry["images"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{dataset / 'dataset.json'}: cannot be read ({error}); write it again") from error
    if not cases:
        raise UserError(f"{dataset}: has no cases in {TEST} or {TRAINING}; check -d and nnUNet_raw")
    return cases
