"""How many processes, and how much memory, where the user does not say; pauses of the collection of garbage."""

import gc
import platform
import subprocess
import sys

import pytest

from pretraining.config import PretrainConfig
from pretraining.system import machine as cores
from pretraining.system.machine import collection_paused
from pretraining.views import loader

GIB = 2**30


@pytest.mark.parametrize(
    ("core_count", "local_processes", "memory", "expected"),
    [
        (64, 4, 500 * GIB, 8),  # not 8 for all four
        (16, 4, 500 * GIB, 4),
        (6, 4, 500 * GIB, 1),
        (2, 4, 500 * GIB, 1),
        (64, 1, 500 * GIB, 8),
        (64, 4, 16 * GIB, 3),  # half of it for four processes: 2 GiB each, 0.51 GiB a worker
        (64, 4, 0, 1),
    ],
)
def test_each_process_has_its_share_of_cores_and_memory(monkeypatch, core_count, local_processes, memory, expected):
    monkeypatch.setattr(loader, "core_count", lambda: core_count)
    monkeypatch.setattr(loader, "available_memory", lambda: memory)
    assert loader.default_workers(48, PretrainConfig(), local_processes) == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max\n", 10 * GIB), (f"{32 * GIB}\n", 10 * GIB), (f"{8 * GIB}\n", 4 * GIB), (f"{GIB}\n", 0), (None, 10 * GIB)],
)
def test_memory_is_what_the_limit_leaves_and_the_file_cache_is_free(monkeypatch, tmp_path, limit, expected):
    (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {10 * 2**20} kB\n")
    if limit:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text(f"{7 * GIB}\n")
        (tmp_path / "memory.stat").write_text(f"anon {4 * GIB}\ninactive_file {3 * GIB}\nactive_file 0\n")
    monkeypatch.setattr(cores, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    assert cores.available_memory() == expected


def test_the_limit_of_a_group_that_holds_this_process_counts(monkeypatch, tmp_path):
    """As of a queue's job: the limit stands at the job, the process is in a step of it."""
    (tmp_path / "meminfo").write_text(f"MemAvailable: {10 * 2**20} kB\n")
    (tmp_path / "own").write_text("0::/job_7/step_0\n")
    (tmp_path / "job_7" / "step_0").mkdir(parents=True)
    (tmp_path / "job_7" / "memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / "job_7" / "memory.current").write_text(f"{GIB}\n")
    (tmp_path / "job_7" / "memory.stat").write_text("inactive_file 0\n")
    (tmp_path / "job_7" / "step_0" / "memory.max").write_text("max\n")
    monkeypatch.setattr(cores, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    monkeypatch.setattr(cores, "_OWN_CGROUP", tmp_path / "own")
    assert cores.available_memory() == 2 * GIB


def test_memory_is_taken_for_plenty_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    assert cores.available_memory() == 2**40


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collection_of_garbage_is_as_before_after_a_pause_and_after_an_error_in_it(enabled):
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError), collection_paused():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def _held_after(size: int, at_most: int) -> int:
    """Bytes that a new process holds more than before, after it has used ``size`` bytes and freed them."""
    code = f"""
import numpy as np
from pretraining.system.machine import keep_freed_memory, resident_memory
keep_freed_memory({at_most})
before = resident_memory()
numbers = np.ones({size}, np.uint8)
del numbers
print(resident_memory() - before)
"""
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems' malloc has no such setting")
def test_freed_memory_is_kept_up_to_a_limit():
    size = 2**28
    assert _held_after(size, -1) > 0.9 * size
    assert _held_after(size, 2 * size) > 0.9 * size
    assert _held_after(size, size // 2) < 0.1 * size
