"""Data from outside the repository; a test that needs them is skipped, with the reason, where they are missing."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The folder of reference numbers that the environment variable CADS_REFERENCE_DIR names."""
    folder = os.environ.get("CADS_REFERENCE_DIR")
    if not folder:
        pytest.skip("CADS_REFERENCE_DIR is not set: no reference numbers to compare with")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def ct_dir() -> Path:
    """The folder of real CT scans: CADS_CT_DIR, or `ct` beside the reference numbers."""
    folder = os.environ.get("CADS_CT_DIR")
    if not folder and os.environ.get("CADS_REFERENCE_DIR"):
        folder = Path(os.environ["CADS_REFERENCE_DIR"]).resolve().parent / "ct"
    if not folder or not Path(folder).is_dir():
        pytest.skip("neither CADS_CT_DIR nor a folder `ct` beside CADS_REFERENCE_DIR: no real CT scans to test on")
    return Path(folder).resolve()
