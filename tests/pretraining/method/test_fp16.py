"""The loss scaler of `--amp fp16` through the real command: overflows raise no alarm, and a run resumes with its scale.

The forward pass is in float32 here, since fp16 takes a CPU a minute per step; the scale is so large that gradients
overflow in float32, too.
"""

import json
from functools import partial

import pytest
import torch
from tiny_run import TINY_RUN

import pretraining.method.pretrainer
from pretraining.run.health import alarms
from pretraining.train import main as pretrain

FLAGS = [*TINY_RUN, "--epochs=2", "--epoch-samples=8", "--num-workers=0", "--amp=fp16"]
STEPS, FIRST_SCALE = 8, 2.0**127


@pytest.fixture
def run(small_store, monkeypatch):
    """Start a run that takes fp16's way; returns its lines, read as strict JSON, and its last checkpoint."""
    monkeypatch.setitem(pretraining.method.pretrainer._AUTOCAST_DTYPE, "fp16", None)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=FIRST_SCALE))

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    def start(output, *flags):
        assert pretrain([str(small_store), str(output), *flags]) == 0
        written = (output / "metrics.jsonl").read_text().splitlines()
        content = torch.load(output / "checkpoint_latest.pth", weights_only=True)
        return [json.loads(line, parse_constant=refuse) for line in written], content

    return start


def test_overflows_are_counted_without_alarm_and_a_run_resumes_with_its_scale(run, tmp_path, capfd):
    lines, content = run(tmp_path / "unbroken", *FLAGS, "--log-every=1")
    overflowed = [line["overflowed_steps"] for line in lines]
    count = sum(overflowed)
    assert 1 < count < STEPS and overflowed == [1] * count + [0] * (STEPS - count)
    assert all((line["gradient_norm"] is None) == (line["overflowed_steps"] == 1) for line in lines)
    assert all(line["skipped_steps"] == 0 for line in lines)
    assert not alarms(lines, 32, 256) and "not finite" not in capfd.readouterr().err
    assert content["scaler"]["scale"] == FIRST_SCALE / 2**count

    stopped, _ = run(tmp_path / "stopped", *FLAGS, "--log-every=1", "--max-hours=1e-9")
    assert len(stopped) == 1
    again, resumed = run(tmp_path / "stopped", "--c", "--max-hours=0")
    assert resumed["scaler"] == content["scaler"]
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]
    assert all(torch.equal(value, content["student"][key]) for key, value in resumed["student"].items())


def test_a_line_averages_the_norms_of_the_steps_that_did_not_overflow(run, tmp_path):
    single, _ = run(tmp_path / "single", *FLAGS, "--log-every=1")
    averaged, _ = run(tmp_path / "averaged", *FLAGS, "--log-every=4")
    for line, four in zip(averaged, (single[:4], single[4:]), strict=True):
        norms = [one["gradient_norm"] for one in four if one["gradient_norm"] is not None]
        assert line["overflowed_steps"] == 4 - len(norms)
        assert line["gradient_norm"] == (pytest.approx(sum(norms) / len(norms)) if norms else None)
    assert (tmp_path / "averaged" / "progress.png").exists()
