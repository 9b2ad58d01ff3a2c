"""Several real processes of torchrun: one run, whatever their number."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tiny_run import TINY_RUN

from pretraining.run.metrics import read_metrics
from pretraining.train import main as pretrain

TINY = [*TINY_RUN, "--batch-size=4", "--epochs=2", "--epoch-samples=12"]
HEALTH = {"loss": 1e-4, "loss_stage1": 1e-4, "loss_stage4": 1e-4, "teacher_entropy": 1e-4, "mutual_information": 1e-3,
          "view_agreement": 1e-4, "gradient_norm": 1e-3, "feature_spread": 1e-4, "feature_rank": 1e-3}  # fmt: skip
"""What must agree, and how closely (relative); AdamW makes much of the last bits."""


def start(*arguments, program=("-m", "pretraining.train")) -> subprocess.Popen:
    """torchrun as a user starts it, with two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [*map(str, program), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", start_new_session=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    return output


def wait_for_steps(output, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while len(read_metrics(output / "metrics.jsonl")) < count:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def assert_same_run(ours, theirs):
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (ours, theirs))
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for name, tolerance in HEALTH.items():
        np.testing.assert_allclose([x[name] for x in ours], [x[name] for x in theirs], rtol=tolerance, atol=1e-5)


@pytest.fixture(scope="module")
def one_process(small_store, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "one"
    assert pretrain([str(small_store), str(output), *TINY]) == 0
    return output


def test_two_processes_do_what_one_does_with_the_whole_batch(small_store, one_process, tmp_path):
    process = start(small_store, tmp_path / "run", *TINY)
    messages = finish(process)
    assert process.returncode == 0, messages
    assert "2 processes on cpu" in messages and messages.count("encoder: ") == 1
    assert_same_run(tmp_path / "run", one_process)
    ours, theirs = (
        torch.load(folder / "checkpoint_latest.pth", weights_only=True) for folder in (tmp_path / "run", one_process)
    )
    torch.testing.assert_close(ours["center"], theirs["center"], rtol=1e-4, atol=1e-5)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in one_process.iterdir()}


def test_a_run_of_two_ranks_resumes_as_one_and_back_in_mid_epoch(small_store, one_process, tmp_path):
    output = tmp_path / "run"
    process = start(small_store, output, *TINY)
    wait_for_steps(output, 2, process)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on to its processes
    messages = finish(process)
    assert "FutureWarning" not in messages
    done = torch.load(output / "checkpoint_latest.pth", weights_only=True)["step"]
    assert 2 <= done < 6 and f"stopped by SIGTERM at step {done} of 6" in messages, messages
    assert pretrain([str(small_store), str(output), "--c", "--accumulate", "1", "--max-hours", "1e-9"]) == 0
    assert torch.load(output / "checkpoint_latest.pth", weights_only=True)["step"] == done + 1
    process = start(small_store, output, "--c", "--max-hours", "0")
    assert "encoder: " in finish(process)
    assert process.returncode == 0
    assert_same_run(output, one_process)


def workers(parent: int) -> list[int]:
    """Child processes that train."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, encoding="utf-8"
    ).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "pretraining.train" in line]


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_rank_is_killed_the_others_end_with_a_usable_checkpoint(small_store, tmp_path, victim):
    output = tmp_path / "run"
    process = start(small_store, output, *TINY, "--epochs", "50")
    wait_for_steps(output, 4, process)  # the first checkpoint is at 3
    os.kill(workers(process.pid)[victim], signal.SIGKILL)
    messages = finish(process)
    assert process.returncode != 0
    assert f"rank {1 - victim} stops at step" in messages
    assert "another process of this run has ended; resume with the same torchrun" in messages
    done = torch.load(output / "checkpoint_latest.pth", weights_only=True)["step"]
    assert done >= 3
    deadline = time.monotonic() + 60
    while left := subprocess.run(["pgrep", "-f", str(output)], capture_output=True).stdout:
        assert time.monotonic() < deadline, f"still running: {left}"  # loader workers of the victim, say
        time.sleep(0.5)
    assert pretrain([str(small_store), str(output), "--c", "--max-hours", "1e-9"]) == 0
    assert torch.load(output / "checkpoint_latest.pth", weights_only=True)["step"] == done + 1


def test_a_mistake_is_reported_once_and_ends_all(tmp_path, small_store):
    process = start(tmp_path, tmp_path / "run", *TINY)
    messages = finish(process)
    assert process.returncode != 0
    assert messages.count("not a store") == 1
    process = start(small_store, tmp_path / "odd", *TINY, "--batch-size", "5")
    messages = finish(process)
    assert process.returncode != 0
    assert messages.count("batch_size 5 cannot be divided by 2 processes; choose a multiple of 2") == 1
    assert not (tmp_path / "odd").exists()  # so that the corrected command finds nothing in its way


def test_a_checkpoint_that_cannot_be_used_is_named_once(small_store, one_process, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(one_process, output)
    (output / "checkpoint_latest.pth").write_bytes(b"PK cut off")
    process = start(small_store, output, "--c")
    messages = finish(process)
    assert process.returncode != 0 and "pretraining/train.py" not in messages
    assert messages.count("cannot resume from this file") == 1, messages


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            "if os.environ['RANK'] == '1': pretraining.run.checkpoint.load_checkpoint = lambda *_: None",
            "checkpoint_latest.pth: the ranks found it at different steps, from 0 to 6, so the file system",
        ),
        (
            "def fail(folder): raise OSError(errno.ESTALE, 'stale', str(folder))\n"
            "pretraining.run.folder.remove_leftovers = fail",
            f"{os.strerror(errno.ESTALE)}; the file server has lost it; check it and start again",
        ),
    ],
    ids=["another node sees an old file", "rank 0 meets a dead file server"],
)
def test_what_a_file_server_does_is_named_once(small_store, one_process, tmp_path, change, said):
    script, output = tmp_path / "script.py", tmp_path / "run"
    shutil.copytree(one_process, output)
    head = "import errno, os, sys, pretraining.run.checkpoint, pretraining.run.folder\n"
    script.write_text(f"{head}from pretraining.train import main\n{change}\nsys.exit(main())\n")
    process = start(small_store, output, "--c", program=[script])
    messages = finish(process)
    assert process.returncode != 0 and messages.count("error: ") == messages.count(said) == 1, messages


def test_a_batch_in_parts_is_the_whole_batch(small_store, tmp_path, capfd):
    """Losses, center statistics and gradients; without batch norm, whose statistics are those of a part, and of which
    small batches are warned."""
    runs = {}
    for parts in (1, 4):
        output = tmp_path / str(parts)
        flags = ["--no-head-batch-norm", "--accumulate", str(parts), "--epochs", "1"]
        assert pretrain([str(small_store), str(output), *TINY, *flags]) == 0
        runs[parts] = torch.load(output / "checkpoint_latest.pth", weights_only=True)
        assert "CADS with batches of 4 and no batch norm in its heads has collapsed" in capfd.readouterr().err
    assert_same_run(tmp_path / "1", tmp_path / "4")
    torch.testing.assert_close(runs[1]["center"], runs[4]["center"], rtol=1e-4, atol=1e-6)


def test_estimate_says_what_a_run_costs_and_writes_nothing(small_store, tmp_path, capfd):
    assert pretrain([str(small_store), str(tmp_path / "run"), *TINY, "--estimate"]) == 0
    told = capfd.readouterr().err
    assert all(word in told for word in ("M trained parameters", "GFLOP per step", "GiB"))
    assert re.search(r"6 steps: [\d.]+ (seconds|minutes)", told)
    assert not (tmp_path / "run").exists()


def test_nan_in_the_batch_of_one_rank_ends_all_at_the_same_step(small_store, tmp_path):
    """The same run with and without `skip`: all ranks leave out the same steps, and one of them reports it."""
    store = tmp_path / "spoilt"
    shutil.copytree(small_store, store)
    path = store / "radiographs" / "small.npy"
    np.save(path, np.full_like(np.load(path), np.nan))
    process = start(store, tmp_path / "stop", *TINY)
    messages = finish(process)
    assert process.returncode != 0
    assert messages.count("the run ends without saving") == 1, messages
    process = start(store, tmp_path / "skip", *TINY, "--on-nan", "skip")
    messages = finish(process)
    assert process.returncode == 0, messages
    assert pretrain([str(store), str(tmp_path / "alone"), *TINY, "--on-nan", "skip"]) == 0
    assert 0 < messages.count("is skipped: ") < 6
    assert_same_run(tmp_path / "skip", tmp_path / "alone")
    skipped = [[x["skipped_steps"] for x in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("skip", "alone")]
    assert skipped[0] == skipped[1]
