"""Running commands: a stop at any moment stops the command, too."""

import os
import signal
import subprocess
import sys
import time

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


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True
