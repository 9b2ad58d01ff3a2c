"""Stop signals, sent to real processes: the first one is raised or collected, and what a second one does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pretraining

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pretraining.__file__).parents[1])}
RAISED = """
import sys, time
from pretraining.system.signals import StopSignal, stop_signals_raised
try:
    with stop_signals_raised():
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("tidying", flush=True)
            sys.stdin.readline()
            print("tidied", flush=True)
except StopSignal as stop:
    sys.exit(stop.exit_code)
"""
TOGETHER = """
import os, signal, sys
from pretraining.system.signals import STOP_SIGNALS, StopSignal, stop_signals_raised
print("ready", flush=True)
signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
try:
    with stop_signals_raised():
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
except StopSignal as stop:
    sys.exit(stop.exit_code)
"""
COLLECTED = """
import sys
from pretraining.system.signals import stop_signals_collected
with stop_signals_collected("finishing") as received:
    print("ready", flush=True)
    while sys.stdin.readline() == "on\\n":
        print(received, flush=True)
"""


@pytest.fixture
def start():
    """Starts a script and waits until it is ready."""
    started = []

    def run(script: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=ENVIRONMENT, encoding="utf-8",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_is_raised_and_further_ones_do_not_disturb_the_tidying(start, number, code):
    process = start(RAISED)
    process.send_signal(number)
    assert process.stdout.readline() == "tidying\n"
    for again in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(again)
    time.sleep(0.2)
    output, errors = process.communicate("\n", timeout=30)
    assert (output, errors, process.returncode) == ("tidied\n", "", code)


def test_two_that_come_together_are_one(start):
    process = start(TOGETHER)
    output, errors = process.communicate(timeout=30)
    assert (output, errors, process.returncode) == ("", "", 130)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_collected_and_the_same_again_ends_the_process(start, number):
    process = start(COLLECTED)
    process.send_signal(number)
    assert process.stderr.readline() + process.stderr.readline() == "\nfinishing\n"
    process.stdin.write("on\n")
    process.stdin.flush()
    assert process.stdout.readline() == f"[{int(number)}]\n"
    process.send_signal(number)
    assert process.wait(30) == -number
