"""The pool of workers: all tasks come back, and one that kills or hangs its worker costs itself alone."""

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

import pretraining
from pretraining.system.errors import UserError
from pretraining.system.worker_pool import THREAD_VARIABLES, TaskTimeoutError, WorkerDiedError, run_in_processes

TASKS = """
import os, pathlib, signal, time

def touch(path):
    pathlib.Path(path).write_text(str(os.getpid()))

def work(task):
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "leave":
        os._exit(3)
    if task == "fail":
        raise ValueError("a task failed")
    if task == "nap":
        time.sleep(1)
    if task.startswith("threads "):
        raise ValueError(",".join(os.environ[name] for name in task[8:].split(",")))
    if task.startswith("sleep "):
        touch(task[6:])
        time.sleep(60)
    if task.startswith("hang "):
        touch(task[5:])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.open(task[5:] + ".pipe", os.O_RDONLY)  # nobody ever writes
    return task
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    (tmp_path / "pool_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import pool_tasks

    yield pool_tasks.work
    del sys.modules["pool_tasks"]


def test_every_task_comes_back_with_its_own_end(work):
    tasks = ["ok", "die", "ok", "fail", "leave", "ok", "ok"]
    results = list(run_in_processes(work, tasks, 2))
    assert sorted(task for task, _ in results) == sorted(tasks)
    for task, outcome in results:
        assert isinstance(
            outcome, {"die": WorkerDiedError, "leave": WorkerDiedError, "fail": ValueError}.get(task, str)
        )
        if task == "die":
            assert str(outcome) == "signal 9"


def test_of_many_deaths_each_costs_its_own_task(work):
    """A pool whose workers share a pipe loses a neighbour's task now and then."""
    tasks = ["die", "ok"] * 20
    for task, outcome in run_in_processes(work, tasks, 4):
        assert isinstance(outcome, WorkerDiedError) if task == "die" else outcome == "ok"


def test_the_last_task_may_die(work):
    ((_, error),) = run_in_processes(work, ["die"], 4)
    assert isinstance(error, WorkerDiedError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="hangs on a named pipe")
@pytest.mark.parametrize("workers", [1, 3])
def test_a_task_that_hangs_costs_itself_alone(work, tmp_path, workers):
    hanging = f"hang {tmp_path / 'mark'}"
    os.mkfifo(tmp_path / "mark.pipe")
    since = time.monotonic()
    outcomes = dict(run_in_processes(work, [hanging, *map(str, range(6))], workers, seconds=8))
    assert 8 <= time.monotonic() - since < 40
    error = outcomes.pop(hanging)
    assert isinstance(error, TaskTimeoutError) and error.seconds == 8
    assert outcomes == {str(n): str(n) for n in range(6)}
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "mark").read_text()), 0)


def test_the_limit_is_for_each_task_not_for_all(work):
    assert [outcome for _, outcome in run_in_processes(work, ["nap"] * 12, 1, seconds=8)] == ["nap"] * 12


def test_a_worker_that_cannot_start_ends_all_with_the_reason(work, tmp_path, capfd):
    """Its module is missing there; it is no want of memory."""
    (tmp_path / "pool_tasks.py").unlink()
    with pytest.raises(UserError, match=r"cannot start \(exit code 1, .* install the module that is missing"):
        list(run_in_processes(work, ["ok", "ok"], 1))
    assert "No module named 'pool_tasks'" in capfd.readouterr().err


@pytest.mark.parametrize(
    "call", ["list(run_in_processes(abs, [-1], 1))", "sys.exit(len(list(run_in_processes(abs, [1], 1))))"]
)
def test_a_script_without_a_guard_is_told_of_it(tmp_path, call):
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nfrom pretraining.system.worker_pool import run_in_processes\n{call}\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(pretraining.__file__).parents[1])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, encoding="utf-8", timeout=100)
    assert done.returncode == 1
    assert 'put the call below if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def test_no_tasks(work):
    assert list(run_in_processes(work, [], 2)) == []


def test_processes_use_one_thread_and_ours_is_left_alone(work):
    before = dict(os.environ)
    ((_, error),) = run_in_processes(work, ["threads " + ",".join(THREAD_VARIABLES)], 1)
    assert str(error) == ",".join("1" for _ in THREAD_VARIABLES)
    assert dict(os.environ) == before


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_closing_ends_the_processes(work, tmp_path):
    mark = tmp_path / "started"
    with closing(run_in_processes(work, ["ok", f"sleep {mark}"], 2)) as results:
        next(results)
        wait_for(lambda: mark.exists() and mark.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
