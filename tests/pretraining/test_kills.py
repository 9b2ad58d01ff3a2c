"""A kill at a random moment in each stage; `benchmarks/kill_at_random.py` alone does fifty of each."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the commands are forked")
def test_killed_commands_go_on_and_end_as_unbroken_ones(tmp_path):
    script = REPOSITORY / "benchmarks" / "kill_at_random.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "1", "--seed", "1", "--work", tmp_path],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, encoding="utf-8", timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    table = re.findall(r"^\| (\w[\w ]+) \| 1 \| \d+ \| (\d+) \| 0 \|$", done.stdout.rpartition("stage")[2], re.M)
    assert [name for name, _ in table] == ["preprocessing", "training", "writing a checkpoint", "exporting"]
    assert all(int(finished) >= 1 for _, finished in table)
