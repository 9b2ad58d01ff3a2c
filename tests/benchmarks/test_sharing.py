"""Processes that share a list of work do each piece once, and take over what a killed one had begun."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

from few_labels.sharing import Piece, held, work_through

FOREVER = float("inf")
CONTEXT = multiprocessing.get_context("fork")


def make_pieces(folder: Path, seconds: float) -> list[Piece]:
    """Eight pieces, the last of which needs the first; each notes in a file of its own who did it."""

    def do(result: Path) -> None:
        time.sleep(seconds)
        with result.with_suffix(".by").open("a") as file:
            file.write(f"{os.getpid()}\n")
        result.touch()

    results = [folder / "results" / f"{i}.json" for i in range(8)]
    results[0].parent.mkdir(exist_ok=True)
    pieces = [Piece(result, lambda result=result: do(result)) for result in results[:-1]]
    return [Piece(results[-1], lambda: do(results[-1]), (results[0],)), *pieces]


def test_each_piece_is_done_once_by_one_of_two_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("few_labels.sharing.WAIT_SECONDS", 0.05)
    workers = [CONTEXT.Process(target=work_through, args=(make_pieces(tmp_path, 0.2), FOREVER)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    done = [path.read_text().splitlines() for path in (tmp_path / "results").glob("*.by")]
    assert len(done) == 8 and all(len(by) == 1 for by in done)
    assert {by for (by,) in done} == {str(worker.pid) for worker in workers}


def test_what_a_killed_process_held_is_free_again(tmp_path):
    lock, taken = tmp_path / "lock", CONTEXT.Event()

    def hold() -> None:
        with held(lock):
            taken.set()
            time.sleep(60)

    holder = CONTEXT.Process(target=hold)
    holder.start()
    assert taken.wait(30)
    with held(lock) as ours:
        assert not ours
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with held(lock) as ours:
        assert ours


def test_after_the_deadline_nothing_is_begun(tmp_path):
    assert work_through(make_pieces(tmp_path, 0), time.monotonic() - 1) is False
    assert not list((tmp_path / "results").iterdir())
    assert work_through(make_pieces(tmp_path, 0), FOREVER) is True
