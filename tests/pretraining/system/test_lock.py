"""Two commands cannot write into one folder at once, with real processes; whoever was killed blocks nobody."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_run import TINY_RUN

import pretraining
from pretraining.system import lock
from pretraining.system.errors import UserError
from pretraining.system.lock import held_when_free, new_lease, run_lock, store_lock

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pretraining.__file__).parents[1])}
HOLD = """
import sys, time
from pathlib import Path
from pretraining.system import lock
lock.LEASE_SECONDS, lock.BEAT_SECONDS, folder, *part = float(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:]
with lock.store_lock(Path(folder), *map(int, part)) if part else lock.run_lock(Path(folder)):
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

    def start(folder, *part, lease=lock.LEASE_SECONDS, beat=lock.BEAT_SECONDS) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(lease), str(beat), str(folder), *map(str, part)],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def short_lease(monkeypatch):
    """Leases of 3 seconds, for both sides: who asks for a lock must use the holder's."""
    monkeypatch.setattr(lock, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.2)
    return {"lease": 3.0, "beat": 0.2}


def is_ours(file: Path) -> bool:
    return f"pid={os.getpid()}\n" in file.read_text()


def seconds_to_take(folder: Path) -> float:
    """How long this process waits for a folder's lock, which it gets and gives back."""
    begin = time.monotonic()
    with run_lock(folder):
        taken = time.monotonic()
        assert is_ours(folder / ".run.lock")
    assert not list(folder.iterdir())
    return taken - begin


def test_a_held_run_is_refused_by_name_and_taken_over_at_once_after_a_kill(tmp_path, hold):
    holder = hold(tmp_path)
    begin = time.monotonic()
    with pytest.raises(UserError) as refused, run_lock(tmp_path):
        pass
    assert time.monotonic() - begin < 30  # seen to be at work, long before its lease of 90 seconds is over
    for word in (f"process {holder.pid} on {socket.gethostname()},", str(tmp_path), "remove", ".run.lock", "work 20"):
        assert word in str(refused.value)
    assert holder.poll() is None
    holder.kill()
    holder.wait()
    assert seconds_to_take(tmp_path) < 2


def test_a_process_that_has_got_the_number_of_a_killed_one_is_not_taken_for_it(tmp_path, hold):
    holder = hold(tmp_path)
    holder.kill()
    holder.wait()
    content = (tmp_path / ".run.lock").read_text()
    (tmp_path / ".run.lock").write_text(content.replace(f"pid={holder.pid}\n", f"pid={os.getpid()}\n"))
    assert seconds_to_take(tmp_path) < 2


def move_elsewhere(file: Path) -> None:
    """Rewrite a lock as if its process were on another machine; its holder goes on refreshing it."""
    content = file.read_text()
    host = next(line for line in content.splitlines() if line.startswith("host="))
    with file.open("r+") as stream:  # the same file: its holder has it open
        stream.write(content.replace(host, "host=" + "x" * (len(host) - 5)))


def test_what_stands_still_elsewhere_is_taken_over(tmp_path, hold, short_lease):
    """A node that failed must not keep the run from being resumed by the next job."""
    holder = hold(tmp_path, **short_lease)
    holder.kill()
    holder.wait()
    move_elsewhere(tmp_path / ".run.lock")
    assert 2.5 < seconds_to_take(tmp_path) < 30


def test_what_is_at_work_elsewhere_is_refused(tmp_path, hold, short_lease):
    holder = hold(tmp_path, **short_lease)
    move_elsewhere(tmp_path / ".run.lock")
    message = rf"process {holder.pid} on xx.*if that process is gone, remove .*/\.run\.lock"
    with pytest.raises(UserError, match=message), run_lock(tmp_path):
        pass
    time.sleep(2 * short_lease["lease"])
    assert holder.poll() is None and (tmp_path / ".run.lock").exists()


def test_who_slept_and_lost_the_folder_ends(tmp_path, hold, short_lease):
    """As on a machine that was suspended, while another took its run for dead."""
    holder = hold(tmp_path, **short_lease)
    os.kill(holder.pid, signal.SIGSTOP)
    with run_lock(tmp_path):
        os.kill(holder.pid, signal.SIGCONT)
        assert holder.wait(30) == 2
        assert f"process {os.getpid()} on {socket.gethostname()} has taken this folder over" in holder.stderr.read()
        assert is_ours(tmp_path / ".run.lock")


def test_whose_lock_is_removed_ends(tmp_path, hold, short_lease):
    holder = hold(tmp_path, **short_lease)
    (tmp_path / ".run.lock").unlink()
    assert holder.wait(30) == 2
    assert f"{tmp_path / '.run.lock'} has been removed" in holder.stderr.read()


def test_half_a_lock_file(tmp_path, short_lease):
    """From a full disk, say: nobody can be named, so it is watched, too."""
    (tmp_path / ".run.lock").write_text("filelock/2\npid=")
    seconds_to_take(tmp_path)


def test_of_many_that_begin_at_once_one_gets_it(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    def take(_) -> bool:
        try:
            with run_lock(tmp_path):
                time.sleep(5)
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
    assert gone_on.returncode == 0 and "resuming at step" in gone_on.stderr, gone_on.stderr
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


def test_a_lock_that_is_waited_for_is_held_by_one_at_a_time(tmp_path):
    seen = []

    def hold(number):
        with held_when_free(new_lease(tmp_path / ".x.lock", tmp_path)):
            seen.append(number)
            time.sleep(0.1)
            seen.append(number)

    threads = [threading.Thread(target=hold, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(seen[::2]) == [0, 1, 2, 3] and seen[::2] == seen[1::2]
    assert not (tmp_path / ".x.lock").exists()
