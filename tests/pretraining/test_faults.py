"""The real commands on full disks, without room for shared memory, out of file handles, without their store or workers.

Each must end by itself, with one sentence and exit code 2, and leave files from which the same command resumes.
"""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch
from tiny_run import TINY_RUN

import pretraining
from pretraining.run.folder import CHECKPOINT
from pretraining.run.metrics import read_metrics
from pretraining.store.store import Store
from pretraining.system.errors import UserError
from pretraining.system.torch_errors import worker_failures_as_errors

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pretraining.__file__).parents[1])}
RUN = "import sys; from pretraining.{0} import main; sys.exit(main())"
TINY = [*TINY_RUN, "--epochs=2", "--epoch-samples=2"]
RESUME = ("--c", "--max-hours=0")


def command(name: str, *arguments, before: str = "") -> list[str]:
    return [sys.executable, "-c", before + RUN.format(name), *map(str, arguments)]


def finish(words: list[str], timeout=150) -> tuple[int, str]:
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, encoding="utf-8", timeout=timeout)
    return done.returncode, done.stderr


def assert_sentence(code: int, messages: str, *parts: str) -> None:
    """Exit code 2 and one line that begins with "error", which has the parts."""
    (sentence,) = [line for line in messages.splitlines() if line.startswith("error: ")]
    assert code == 2 and "Traceback" not in messages, messages
    assert all(part in sentence for part in parts), sentence


@pytest.fixture(scope="module")
def stopped(small_store, tmp_path_factory):
    """A run with one of its two epochs done, to be copied."""
    output = tmp_path_factory.mktemp("faults") / "run"
    assert finish(command("train", small_store, output, *TINY, "--max-hours=1e-9"))[0] == 0
    assert torch.load(output / CHECKPOINT, weights_only=True)["step"] == 1
    return output


@pytest.fixture
def run_folder(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    return tmp_path / "run"


def assert_as_before(folder: Path, stopped: Path) -> None:
    """The last checkpoint is the one that was there, and nothing half-written lies beside it."""
    assert (folder / CHECKPOINT).read_bytes() == (stopped / CHECKPOINT).read_bytes()
    assert not list(folder.glob(".*.tmp"))


def test_disk_full_during_a_checkpoint(with_mount, small_store, stopped, tmp_path):
    """The folder of the run is a file system with room for one checkpoint and not for two."""
    folder, size = tmp_path / "small", (stopped / CHECKPOINT).stat().st_size
    folder.mkdir()
    same = f'cmp "{stopped}/{CHECKPOINT}" "{folder}/{CHECKPOINT}"'
    script = f'cp "{stopped}"/* "{folder}" && "$@"; code=$?; {same} && exit $code'
    words = ["sh", "-c", script, "sh", *command("train", small_store, folder, *RESUME, "--num-workers=0")]
    code, messages = finish(with_mount(f"-t tmpfs -o size={int(1.5 * size)} tmpfs", folder, words))
    assert_sentence(code, messages, CHECKPOINT, os.strerror(errno.ENOSPC), "make room", "--c")


def test_disk_full_from_the_beginning(with_mount, small_store, tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    words = [
        "sh",
        "-c",
        f'head -c 1M /dev/zero > "{folder}/.x"; exec "$@"',
        "sh",
        *command("train", small_store, folder / "run", *TINY),
    ]
    code, messages = finish(with_mount("-t tmpfs -o size=64k tmpfs", folder, words))
    assert_sentence(code, messages, str(folder / "run"), os.strerror(errno.ENOSPC))


def test_read_only_run(read_only, small_store, stopped, run_folder):
    code, messages = finish(read_only(run_folder, command("train", small_store, run_folder, *RESUME)))
    assert_sentence(code, messages, str(run_folder), os.strerror(errno.EROFS))
    assert_as_before(run_folder, stopped)


def test_shared_memory_too_small(with_mount, small_store, stopped, run_folder):
    words = command("train", small_store, run_folder, *RESUME, "--num-workers=1")
    code, messages = finish(with_mount("-t tmpfs -o size=64k tmpfs", Path("/dev/shm"), words))
    assert_sentence(code, messages, "/dev/shm has no room", "--shm-size", "--num-workers", "--c")
    assert_as_before(run_folder, stopped)


def test_too_few_file_handles(small_store, stopped, run_folder):
    """Refused before a worker starts; the number of files that the sentence asks for is enough."""

    def resume(limit: int) -> tuple[int, str]:
        before = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit},) * 2); "
        return finish(command("train", small_store, run_folder, *RESUME, "--num-workers=2", before=before))

    code, messages = resume(40)
    assert_sentence(code, messages, "only 40 files", "ulimit -n", "--c")
    assert_as_before(run_folder, stopped)
    code, messages = resume(int(re.search(r"needs (\d+)", messages)[1]))
    assert code == 0, messages


def workers_of(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def begin_training(store, folder, *arguments) -> subprocess.Popen:
    """Start a run and wait for the first of its many steps."""
    many = [*TINY, "--epochs=1", "--epoch-samples=200", "--num-workers=1"]
    process = subprocess.Popen(
        command("train", store, folder, *many), env=ENVIRONMENT, stderr=subprocess.PIPE, encoding="utf-8"
    )
    deadline = time.monotonic() + 120
    while len(read_metrics(folder / "metrics.jsonl")) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="worker processes are looked up in /proc")
def test_a_killed_loader_process_ends_the_run_with_a_sentence(small_store, tmp_path):
    process = begin_training(small_store, tmp_path / "run")
    os.kill(workers_of(process)[0], signal.SIGKILL)  # as the kernel does where memory is short
    _, messages = process.communicate(timeout=60)
    assert_sentence(process.returncode, messages, "(Killed)", "want of memory", "--num-workers", "--c")


def test_a_store_that_vanishes(small_store, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(small_store, store)
    process = begin_training(store, tmp_path / "run")
    store.rename(tmp_path / "elsewhere")
    _, messages = process.communicate(timeout=90)
    assert_sentence(process.returncode, messages, str(store), "is gone", "--c")


@pytest.mark.parametrize(
    "text", ["DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that", "unable to mmap in shm"]
)
def test_shared_memory_that_is_used_up_later(text):
    with pytest.raises(UserError, match=r"--shm-size.*; resume"), worker_failures_as_errors("resume"):
        raise RuntimeError(text)


def test_other_errors_of_the_training_keep_their_traceback():
    with pytest.raises(RuntimeError, match="size mismatch"), worker_failures_as_errors("resume"):
        raise RuntimeError("size mismatch")


@pytest.fixture
def archive(tmp_path, make_body):
    (tmp_path / "archive").mkdir()
    for index in range(4):
        sitk.WriteImage(make_body((60, 60, 60), seed=index), str(tmp_path / "archive" / f"{index}.nii"))
    return tmp_path / "archive"


def test_disk_full_while_preprocessing(with_mount, archive, tmp_path):
    """The store is a file system with room for some of the volumes; with more room, the same command continues."""
    store, after = tmp_path / "store", tmp_path / "after"
    store.mkdir()
    words = ["sh", "-c", f'"$@"; code=$?; cp -a "{store}" "{after}"; exit $code', "sh"]
    words += command("preprocess", archive, store, "-np", 1)
    code, messages = finish(with_mount("-t tmpfs -o size=800k tmpfs", store, words))
    assert_sentence(code, messages, str(store), os.strerror(errno.ENOSPC), "make room")
    done = {path.stem for path in (after / "volumes").glob("*.json")}
    assert 0 < len(done) < 4 and not list(after.rglob(".*.tmp"))
    code, messages = finish(command("preprocess", archive, after, "-np", 1))
    assert code == 0, messages
    finished = Store.open(after)
    assert len(finished) == 4 and all(finished.volume(name)[:].shape == (60, 60, 60) for name in finished.ids)


@pytest.mark.parametrize("what", ["store", "around"])
def test_read_only_store(read_only, archive, tmp_path, what):
    """A store to add to, and the folder that a new one would come into."""
    (tmp_path / "around" / "store").mkdir(parents=True)
    store = tmp_path / "around" / ("store" if what == "store" else "new")
    if what == "store":
        assert finish(command("preprocess", archive / "0.nii", store))[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "around").rglob("*")}
    code, messages = finish(read_only(tmp_path / "around", command("preprocess", archive, store)))
    assert_sentence(code, messages, str(store), os.strerror(errno.EROFS))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "around").rglob("*")} == before


def test_too_few_file_handles_for_preprocessing(archive, tmp_path):
    limit = "import pretraining.preprocess, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (9,) * 2); "
    code, messages = finish(command("preprocess", archive, tmp_path / "store", "-np", 8, before=limit))
    assert_sentence(code, messages, os.strerror(errno.EMFILE), "ulimit -n")


def test_an_export_on_a_full_disk_leaves_nothing(stopped, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**20,) * 2); "
    for name in ("encoder.pth", "encoder.safetensors"):
        code, messages = finish(command("export", stopped, tmp_path / name, before=limit))
        assert_sentence(code, messages, name, os.strerror(errno.EFBIG))
    assert not list(tmp_path.iterdir())
