"""Shared fixtures: data from outside the repository, and reference weights.

A test that needs outside data is skipped where they are missing; a line at the end of the run says so.
"""

import os

from pretraining.system.machine import core_count

# Set before torch is imported, and for every command that a test starts. Otherwise threads of OpenMP spin while they
# wait for each other, which takes most of the time where a test has several processes or the machine other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The processes that run tests share the cores. Set by them alone: they would inherit what their parent sets.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = core_count() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import ctypes
import gc
import locale
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from pretraining.system import devices

# Every run tries the same examples, so that no test fails on some days only. `--hypothesis-profile=explore` looks for
# new ones; one that fails is then written down as an @example.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("repeatable")


LONG_FILES = (
    "demo/test_cli.py",
    "comparison/test_compare_command.py",
    "test_evidence.py",
    "test_distributed.py",
    "test_faults.py",
    "test_pretrain_command.py",
    "test_kills.py",
    "test_configurations.py",
    "test_health.py",
    "test_no_network.py",
    "test_trainer.py",
    "test_student_teacher.py",
    "test_cluster_script.py",
    "test_lock.py",
)
"""They take a minute or more. They come first, so that no process is left with one of them when the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files of tests: the long ones, then the rest as they were found."""

    def place(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((i for i, name in enumerate(LONG_FILES) if path.endswith(f"/{name}")), len(LONG_FILES))

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line how many tests were skipped because data from outside the repository are missing."""
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ())]
    missing = Counter(reason for reason in reasons if "CADS_" in reason)
    if missing:
        lines = [f"{count} tests were skipped: {reason}" for reason, count in sorted(missing.items())]
        terminalreporter.write_line("; ".join(lines))


@pytest.fixture(autouse=True)
def same_locale() -> Iterator[None]:
    """ITK sets the process's locale where it writes DICOM; no test may depend on what ran before it."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(autouse=True, scope="session")
def freed_memory_is_not_kept() -> Iterator[None]:
    """A pre-training lets malloc keep what it frees, for speed; a process that runs many tests would grow to 6 GB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "keep_freed_memory", lambda: None)
        yield


@pytest.fixture(autouse=True)
def freed_memory_is_returned() -> Iterator[None]:
    """Of one test, before the next."""
    yield
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc
        trim(0)


@pytest.fixture(autouse=True, scope="module")
def cycles_are_freed() -> Iterator[None]:
    """Networks and optimizers of a file of tests, before the next one begins."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """The folder of reference numbers that the environment variable CADS_REFERENCE_DIR names."""
    folder = os.environ.get("CADS_REFERENCE_DIR")
    if not folder:
        pytest.skip("CADS_REFERENCE_DIR is not set (recorded numbers of the published code)")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def peers_dir(reference_dir: Path) -> Path:
    """The folder `peers` beside the reference numbers: those of other published networks."""
    folder = reference_dir.parent / "peers"
    if not folder.is_dir():
        pytest.skip("CADS_REFERENCE_DIR has no folder `peers` beside it (recorded numbers of other networks)")
    return folder


@pytest.fixture(scope="session")
def ct_dir() -> Path:
    """The folder of real CT scans that CADS_CT_DIR names, or `ct` beside that of the reference numbers."""
    folder = os.environ.get("CADS_CT_DIR")
    if not folder and os.environ.get("CADS_REFERENCE_DIR"):
        folder = Path(os.environ["CADS_REFERENCE_DIR"]).resolve().parent / "ct"
    if not folder or not Path(folder).is_dir():
        pytest.skip("CADS_CT_DIR is not set (real CT scans)")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def set_reference_weights() -> Callable[[torch.nn.Module], None]:
    """Set every tensor of a module, by its key, to the weights that the reference numbers were recorded with."""

    def tensor(key: str, shape: torch.Size) -> torch.Tensor:
        x = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
        if key.endswith("weight_g"):
            x = np.ones(shape)
        elif key.endswith("bias"):
            x = 0.02 * x
        elif len(shape) == 1:
            x = 1 + 0.1 * x
        else:
            x = x / np.sqrt(np.prod(shape[1:]))
        return torch.from_numpy(x.astype(np.float32))

    def set_weights(module: torch.nn.Module) -> None:
        module.load_state_dict({key: tensor(key, value.shape) for key, value in module.state_dict().items()})

    return set_weights
