"""The pool of processes: all tasks come back, and a process that dies takes only its own task with it."""

import os
import sys
import time
from contextlib import closing

import pytest

from pretraining.system.worker_pool import THREAD_VARIABLES, WorkerDiedError, run_in_processes

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
    if task.startswith("threads "):
        raise ValueError(",".join(os.environ[name] for name in task[8:].split(",")))
    if task.startswith("sleep "):
        touch(task[6:])
        time.sleep(60)
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
    for task, error in results:
        expected = {"die": WorkerDiedError, "leave": WorkerDiedError, "fail": ValueError}.get(task, type(None))
        assert isinstance(error, expected)
        if task == "die":
            assert str(error) == "signal 9"


def test_the_last_task_may_die(work):
    ((_, error),) = run_in_processes(work, ["die"], 4)
    assert isinstance(error, WorkerDiedError)


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
