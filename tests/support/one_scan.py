"""The one scan of a folder, as it is read or refused."""

from pathlib import Path

import pytest

from pretraining.ct.find_scans import find_scans
from pretraining.ct.read_ct import CTImage, read_ct
from pretraining.ct.scan import UnusableScanError


def read_only(folder: Path) -> CTImage:
    """Read the one scan of a folder."""
    scans, unusable = find_scans(folder, folder / "store")
    assert len(scans) == 1 and not unusable
    return read_ct(scans[0])


def refusal(folder: Path) -> str:
    """Why the one scan of a folder cannot be used, in one line."""
    with pytest.raises(UnusableScanError) as error:
        read_only(folder)
    assert "\n" not in str(error.value)
    return str(error.value)
