"""The SLURM script of docs/cluster on two nodes that this machine plays, while its jobs are killed in several ways."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from tiny_run import TINY_RUN

from pretraining.run.metrics import read_metrics

SCRIPT = Path(__file__).parents[2] / "docs" / "cluster" / "cads_pretrain.sbatch"
NODES = 2
SLURM = {
    "srun": f'for node in $(seq {NODES}); do "$@" & done; wait',
    "scontrol": "echo localhost",
    "sbatch": 'echo "$1" >> "$QUEUE"',
}
"""SLURM's commands, as far as the script needs them."""
FLAGS = [*TINY_RUN, "--epochs=10", "--epoch-samples=6"]
"""30 steps, with a checkpoint after every third."""


class Cluster:
    """Two nodes, and the script adapted to them.

    Attributes:
        run: the folder of the run.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        folder.mkdir()
        self.run, self._script, self._queue = folder / "run", folder / "script", folder / "queue"
        for name, body in SLURM.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)
        text = SCRIPT.read_text(encoding="utf-8")
        for line, adapted in {
            "STORE=/scratch/$USER/store": f"STORE={store}",
            "RUN=/scratch/$USER/run": f"RUN={self.run}",
            "SCRIPT=$HOME/cads_pretrain.sbatch": f"SCRIPT={self._script}",
            "SHORTEST=600": "SHORTEST=0",
            "source ~/venv/bin/activate": "",
            "--nproc_per_node=4": "--nproc_per_node=1",
            "--amp bf16": " ".join(FLAGS),
        }.items():
            assert text.count(line) == 1, line
            text = text.replace(line, adapted)
        self._script.write_text(text, encoding="utf-8")
        self._environment = os.environ | {
            "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "QUEUE": str(self._queue),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_NNODES": str(NODES),
            "SLURM_CPUS_PER_TASK": "1",
        }

    def start_job(self) -> None:
        """Start the script, as SLURM starts a job."""
        self._queue.write_text("")
        number = next(n for n in range(os.getpid(), os.getpid() + 1000) if _is_free(20_000 + n % 10_000))
        with (self.run.parent / "log").open("a") as log:
            self._job = subprocess.Popen(
                ["bash", str(self._script)],
                env=self._environment | {"SLURM_JOB_ID": str(number)}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 240
        while not any(line["step"] >= step for line in read_metrics(self.run / "metrics.jsonl")):
            assert self._job.poll() is None, self.log()
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    def end_job(self) -> bool:
        """Wait for the job's end; whether it has queued another."""
        self._job.wait(timeout=240)
        return self._queue.read_text() == f"{self._script}\n"

    def processes(self, of_command: str = "") -> list[int]:
        """The job's processes with this in their command: parents before children."""
        listed = subprocess.run(["ps", "-eww", "-o", "pid=,ppid=,args="], capture_output=True, encoding="utf-8").stdout
        rows = [line.split(None, 2) for line in listed.splitlines()]
        tree = [self._job.pid]
        for parent in tree:  # which grows
            tree += [int(pid) for pid, of, _ in rows if int(of) == parent]
        commands = {int(pid): command for pid, _, command in rows}
        return [pid for pid in tree if of_command in commands.get(pid, "")]

    def log(self) -> str:
        return (self.run.parent / "log").read_text(encoding="utf-8")

    def encoder(self) -> dict[str, torch.Tensor]:
        return torch.load(self.run / "cads_encoder.pth", weights_only=True)["teacher"]


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("localhost", port)) != 0


def test_a_run_that_is_killed_again_and_again_queues_itself_and_ends_as_if_nothing_had_happened(tmp_path, small_store):
    unbroken = Cluster(tmp_path / "unbroken", small_store)
    unbroken.start_job()
    assert not unbroken.end_job(), "a finished run was queued again"
    assert "2 processes on cpu" in unbroken.log()

    cluster = Cluster(tmp_path / "killed", small_store)
    cluster.start_job()
    cluster.wait_for_step(5)
    for pid in cluster.processes("/torchrun"):  # the end of a job's time, or a preemption
        os.kill(pid, signal.SIGTERM)
    assert cluster.end_job(), cluster.log()
    assert "stopped by SIGTERM at step" in cluster.log()

    cluster.start_job()
    cluster.wait_for_step(11)
    os.kill(cluster.processes("pretraining.train")[-1], signal.SIGKILL)  # memory ran out on one node
    assert cluster.end_job(), cluster.log()

    cluster.start_job()
    cluster.wait_for_step(17)
    for pid in cluster.processes():  # the power fails; SLURM itself starts the same job again
        os.kill(pid, signal.SIGKILL)
    assert not cluster.end_job()

    cluster.start_job()
    assert not cluster.end_job(), cluster.log()
    wanted, found = unbroken.encoder(), cluster.encoder()
    assert wanted.keys() == found.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert [line["step"] for line in read_metrics(cluster.run / "metrics.jsonl")] == list(range(30))
    cluster.start_job()  # one that was still in the queue
    assert not cluster.end_job() and "finished: " in cluster.log()
