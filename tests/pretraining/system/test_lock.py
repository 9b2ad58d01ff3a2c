"""Two commands cannot write into one folder at once, with real processes; whoever was killed blocks nobody."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import TINY_RUN

import pretraining
from pretraining.system import lock
from pretraining.system.errors import UserError
from pretraining.system.lock import run_lock, store_lock

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pretraining.__file__).parents[1])}
HOLD = """
import sys, time
from pathlib import Path
from pretraining import lock
from pretraining.system.lock import run_lock, store_lock
lock.BEAT_SECONDS = 0.1
folder, *part = sys.argv[1:]
with store_lock(Path(folder), *map(int, part)) if part else run_lock(Path(folder)):
    print("held", flush=True)
    time.sleep(60)
"""
TINY = [*TINY_RUN, "--epochs=300", "--num-workers=0"]


def command(name: str, *arguments) -> list[str]:
    return [sys.executable, "-c", f"import sys; from pretraining.{name} import main; sys.exit(main())",
            *map(str, arguments)]  # fmt: skip


@pytest.fixture
def hold():
    """Starts a process that holds a folder, and waits until it does."""
    started = []

    def start(folder, *part) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), *map(str, part)],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_held_run_is_refused_by_name_and_free_after_its_end(tmp_path, hold):
    holder = hold(tmp_path)
    with pytest.raises(UserError) as refused, run_lock(tmp_path):
        pass
    for word in (f"process {holder.pid} on {socket.gethostname()}", str(tmp_path), "remove", ".run.lock", "since 20"):
        assert word in str(refused.value)
    holder.kill()
    holder.wait()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / ".run.lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_process_that_has_got_the_number_of_a_killed_one_is_not_taken_for_it(tmp_path):
    with run_lock(tmp_path):
        content = json.loads((tmp_path / ".run.lock").read_text())
    (tmp_path / ".run.lock").write_text(json.dumps(content | {"started": "long ago"}))
    with run_lock(tmp_path):
        pass


ELSEWHERE = pytest.mark.parametrize("change", [{"host": "another"}, {"namespace": "another"}])


def lock_of(folder, **changes) -> Path:
    """A lock that a process of another machine has left behind."""
    with run_lock(folder):
        content = json.loads((folder / ".run.lock").read_text())
    (folder / ".run.lock").write_text(json.dumps(content | {"pid": 2**22} | changes))
    return folder / ".run.lock"


@ELSEWHERE
def test_what_stands_still_elsewhere_is_taken_over(tmp_path, monkeypatch, change):
    """A node that failed must not keep the run from going on with the next job."""
    lock_of(tmp_path, **change)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 1.0)
    with run_lock(tmp_path):
        assert json.loads((tmp_path / ".run.lock").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@ELSEWHERE
def test_what_is_at_work_elsewhere_is_refused(tmp_path, monkeypatch, change):
    """A real holder, which only seems to be elsewhere: this process takes itself for another machine."""
    with run_lock(tmp_path):
        own = {key: json.loads((tmp_path / ".run.lock").read_text())[key] for key in ("host", "namespace")}
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    with run_lock(tmp_path):
        there = own | change
        monkeypatch.setattr(socket, "gethostname", lambda: there["host"])
        monkeypatch.setattr(lock, "_namespace", lambda: there["namespace"])
        message = rf"process {os.getpid()} on .*if that process is gone, remove .*/\.run\.lock"
        with pytest.raises(UserError, match=message), run_lock(tmp_path):
            pass
        assert (tmp_path / ".run.lock").exists()
    assert not list(tmp_path.iterdir())


def test_who_slept_and_lost_the_folder_ends(tmp_path, hold):
    """As on a machine that was suspended, while another took its run for dead."""
    holder = hold(tmp_path)
    os.kill(holder.pid, signal.SIGSTOP)
    (tmp_path / ".run.lock").rename(tmp_path / "aside")  # what taking over does
    with run_lock(tmp_path):
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.wait(30) == 2
        assert f"process {os.getpid()}" in holder.stderr.read()
        assert json.loads((tmp_path / ".run.lock").read_text())["pid"] == os.getpid()


def test_half_a_lock_file(tmp_path, monkeypatch):
    """From a full disk, say: nobody can be named, so it is watched, too."""
    (tmp_path / ".run.lock").write_text('{"host": ')
    monkeypatch.setattr(lock, "WATCH_SECONDS", 1.0)
    with run_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_begin_at_once_one_gets_it(tmp_path, monkeypatch, links):
    from concurrent.futures import ThreadPoolExecutor

    def no_links(*_):
        raise PermissionError(1, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)

    def take(_) -> bool:
        try:
            with run_lock(tmp_path):
                time.sleep(1)
                return True
        except UserError:
            return False

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(take, range(16))) == 1


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ((0, 2), (1, 2), True),
        ((0, 2), (0, 2), False),
        ((0, 2), (1, 3), False),
        ((0, 1), (0, 2), False),
        ((0, 2), (0, 1), False),
        ((0, 1), (0, 1), False),
    ],
)
def test_which_parts_of_a_store_go_together(tmp_path, hold, first, second, together):
    holder = hold(tmp_path, *first)
    if together:
        with store_lock(tmp_path, *second):
            return
    with pytest.raises(UserError, match=f"process {holder.pid} on"), store_lock(tmp_path, *second):
        pass
    holder.kill()
    holder.wait()
    with store_lock(tmp_path, *second):
        pass
    assert not list(tmp_path.iterdir())


def test_two_runs_in_one_folder(small_store, tmp_path):
    output = tmp_path / "run"
    first = subprocess.Popen(
        command("train", small_store, output, *TINY), env=ENVIRONMENT, stderr=subprocess.PIPE, encoding="utf-8"
    )
    try:
        deadline = time.monotonic() + 120
        while not (output / "checkpoint_latest.pth").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        second = command("train", small_store, output, "--c")
        refused = subprocess.run(second, env=ENVIRONMENT, capture_output=True, encoding="utf-8")
        assert refused.returncode == 2 and f"process {first.pid} on {socket.gethostname()}" in refused.stderr
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert (output / ".run.lock").exists()
    gone_on = subprocess.run([*second, "--max-hours", "1e-9"], env=ENVIRONMENT, capture_output=True, encoding="utf-8")
    assert gone_on.returncode == 0 and "going on at step" in gone_on.stderr, gone_on.stderr
    assert not list(output.glob(".run.lock*"))


def test_two_commands_on_one_store(tmp_path, make_body, hold):
    import SimpleITK as sitk

    (tmp_path / "scans").mkdir()
    sitk.WriteImage(make_body(), str(tmp_path / "scans" / "a.nii.gz"))
    store = tmp_path / "store"
    store.mkdir()
    holder = hold(store)  # holds no part of a store: not in the way
    holder.kill()
    holder.wait()
    holder = hold(store, 1, 2)
    arguments = command("preprocess", tmp_path / "scans", store, "-np", 1)
    refused = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, encoding="utf-8")
    assert refused.returncode == 2 and f"process {holder.pid} on" in refused.stderr
    assert not (store / "manifest.json").exists()
    holder.kill()
    holder.wait()
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert not list(store.glob(".preprocess*"))
