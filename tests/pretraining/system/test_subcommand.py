"""Running commands: a stop at any moment stops the command, too."""

import os
import signal
import subprocess
import sys
import threading
import time

from pretraining.system.subcommand import run_step

PROGRAM = """
import sys
from pathlib import Path
from pretraining.system.subcommand import run_step
from pretraining.system.signals import stop_signals_collected

sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
with stop_signals_collected("stopping") as received:
    print("running", flush=True)
    run_step([sys.executable, "-c", sleeper], {}, Path(sys.argv[1]), received)
sys.exit(7 if received else 0)
"""


def test_a_stop_at_any_moment_leaves_no_command_running(tmp_path):
    logs = []
    for i in range(25):
        logs.append(tmp_path / f"{i}.log")
        program = [sys.executable, "-c", PROGRAM, str(logs[-1])]
        with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            process.stdout.readline()
            time.sleep(i * 0.0012)  # around the moment at which the command starts
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 7
    time.sleep(0.5)  # time for a command that was left alone to write its number
    numbers = [int(log.read_text()) for log in logs if log.exists() and log.read_text().strip()]
    left = [number for number in numbers if _runs(number)]
    for number in left:
        os.kill(number, signal.SIGKILL)
    assert not left


def test_a_stop_takes_the_processes_of_the_command_along(tmp_path):
    """Workers that wait for work do not look whether their parent is there."""
    worker = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    command = f"""import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", {worker!r}])
print(worker.pid, flush=True)
time.sleep(60)"""
    received, log = [], tmp_path / "log"
    running = threading.Thread(target=run_step, args=([sys.executable, "-c", command], {}, log, received))
    running.start()
    while not log.exists() or not log.read_text().strip():
        time.sleep(0.05)
    received.append(signal.SIGTERM)
    running.join(30)
    deadline = time.monotonic() + 10
    while _runs(int(log.read_text())):  # a killed process is gone when init has looked at it
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True
