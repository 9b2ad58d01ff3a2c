"""`cads_pretrain` as a user runs it: to the end, stopped and continued, and on what it cannot use."""

import json
import math
import os
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import TINY_RUN

from nnunetv2_cads.encoder_file.read import load_encoder, read_encoder_file
from nnunetv2_cads.network_architecture import PVTv2Encoder
from pretraining.config import PretrainConfig
from pretraining.run.folder import NO_SETTINGS
from pretraining.run.metrics import read_metrics
from pretraining.system.errors import UserError
from pretraining.train import main as pretrain
from pretraining.train import train

COMMAND = str(Path(sysconfig.get_path("scripts")) / "cads_pretrain")
TINY = TINY_RUN


def losses(output: Path) -> list[dict]:
    """The metrics without the speed, which differs from run to run."""
    return [
        {k: v for k, v in line.items() if k != "samples_per_second"} for line in read_metrics(output / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def unbroken(small_store, tmp_path_factory):
    """A finished run of six steps."""
    output = tmp_path_factory.mktemp("runs") / "unbroken"
    assert pretrain([str(small_store), str(output), *TINY]) == 0
    return output


def test_a_run_writes_its_files_and_an_encoder_of_its_teacher(unbroken):
    names = {path.name for path in unbroken.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "progress.png", "checkpoint_latest.pth", "cads_encoder.pth"}
    lines = losses(unbroken)
    assert [line["step"] for line in lines] == list(range(6))
    assert all(math.isfinite(line["loss"]) and line["mutual_information"] > -1e-5 for line in lines)
    stages = [np.mean([line[f"loss_stage{i}"] for i in range(1, 5)]) for line in lines]
    np.testing.assert_allclose(stages, [line["loss"] for line in lines], rtol=1e-6)
    config = json.loads((unbroken / "config.json").read_text())
    assert config["optim"]["batch_size"] == 2 and config["versions"]["torch"] == torch.__version__
    encoder = read_encoder_file(unbroken / "cads_encoder.pth")
    assert encoder.record.notes["crop_size"] == [16, 64, 64] and encoder.record.clip_hu == (-1024, 1024)
    assert encoder.record.notes["steps"] == 6
    report = load_encoder(PVTv2Encoder(size="b0"), encoder.state)
    assert len(report.matched) == 204 and not report.missing + report.unexpected + report.mismatched
    teacher = torch.load(unbroken / "checkpoint_latest.pth", weights_only=True)["teacher"]
    assert all(torch.equal(teacher["backbone." + key], value) for key, value in encoder.state.items())


def test_training_moves_student_and_teacher(unbroken):
    content = torch.load(unbroken / "checkpoint_latest.pth", weights_only=True)
    torch.manual_seed(0)
    initial = PVTv2Encoder(drop_path_rate=0.1, size="b0").state_dict()
    moved = {"student": 0, "teacher": 0}
    for part in moved:
        for key, value in initial.items():
            if value.dim() > 1:
                moved[part] += not torch.equal(content[part]["backbone." + key], value)
    matrices = sum(value.dim() > 1 for value in initial.values())
    assert moved["student"] == matrices and moved["teacher"] == matrices
    assert content["center"].abs().sum() > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_resumes_exactly_where_it_stopped(small_store, unbroken, tmp_path, number):
    output = tmp_path / "run"
    process = subprocess.Popen(
        [COMMAND, str(small_store), str(output), *TINY],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(read_metrics(output / "metrics.jsonl")) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)  # three steps done: in the middle of the second epoch
    os.killpg(process.pid, number)  # with its loader's worker, as a terminal, `timeout` and torchrun do
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 128 + number, messages
    assert f"{number.name} at step" in messages and "--c" in messages and "Traceback" not in messages
    done = torch.load(output / "checkpoint_latest.pth", weights_only=True)["step"]
    assert 3 <= done < 6
    assert len(losses(output)) == done
    assert not (output / "cads_encoder.pth").exists()
    finished = subprocess.run([COMMAND, str(small_store), str(output), "--c"], capture_output=True, encoding="utf-8")
    assert finished.returncode == 0, finished.stderr
    assert f"resuming at step {done}" in finished.stderr
    assert losses(output) == losses(unbroken)
    ours, theirs = (torch.load(folder / "checkpoint_latest.pth", weights_only=True) for folder in (output, unbroken))
    for part in ("student", "teacher"):
        assert all(torch.equal(ours[part][key], value) for key, value in theirs[part].items())
    assert torch.equal(ours["center"], theirs["center"])


def test_a_long_epoch_is_saved_in_between(small_store, tmp_path):
    output = tmp_path / "run"
    arguments = [str(small_store), str(output), *TINY, "--epoch-samples", "4000"]
    process = subprocess.Popen([COMMAND, *arguments, "--save-minutes", "1e-9"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_metrics(output / "metrics.jsonl")) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert pretrain([str(small_store), str(output), "--c", "--max-hours", "1e-9"]) == 0
    assert torch.load(output / "checkpoint_latest.pth", weights_only=True)["step"] >= 3
    steps = [line["step"] for line in losses(output)]
    assert steps == list(range(len(steps)))


def test_a_run_without_checkpoint_says_that_it_starts_over(small_store, unbroken, tmp_path, capfd):
    output = tmp_path / "run"
    output.mkdir()
    (output / "config.json").write_bytes((unbroken / "config.json").read_bytes())
    assert pretrain([str(small_store), str(output), "--c"]) == 0
    assert f"{output}: holds no checkpoint yet, so the run starts from its first step" in capfd.readouterr().err
    assert losses(output) == losses(unbroken)


def test_resuming_a_finished_run_changes_nothing(small_store, unbroken):
    before = losses(unbroken)
    assert pretrain([str(small_store), str(unbroken), "--c"]) == 0
    assert losses(unbroken) == before


def test_python_trains_as_the_command_does(small_store, unbroken, tmp_path):
    content = json.loads((unbroken / "config.json").read_text())
    config = PretrainConfig.from_dict({key: content[key] for key in content if key not in NO_SETTINGS})
    output = tmp_path / "run"
    assert train(small_store, output, config.replace(max_hours=1e-9)) == 0
    assert torch.load(output / "checkpoint_latest.pth", weights_only=True)["step"] == 1
    written = json.loads((output / "config.json").read_text())
    assert written == {**content, "run": {**content["run"], "max_hours": 1e-9}}
    with pytest.raises(UserError, match="exists already and is not empty; add --c"):
        train(small_store, output, config)
    assert train(small_store, output, {"max_hours": 0.0}, resume=True) == 0
    assert losses(output) == losses(unbroken)


def test_a_seed_gives_one_run_whatever_the_workers_and_another_gives_another(small_store, tmp_path):
    runs = {}
    for name, seed, workers in (("run", 0, 0), ("again", 0, 2), ("other", 1, 0)):
        output = tmp_path / name
        settings = ["--epochs", "1", "--seed", str(seed), "--num-workers", str(workers)]
        assert pretrain([str(small_store), str(output), *TINY, *settings]) == 0
        content = torch.load(output / "checkpoint_latest.pth", weights_only=True)
        runs[name] = losses(output), [*content["teacher"].values(), *content["student"].values(), content["center"]]
    assert runs["again"][0] == runs["run"][0]
    assert all(torch.equal(a, b) for a, b in zip(runs["again"][1], runs["run"][1], strict=True))
    assert runs["other"][0][0]["loss"] != runs["run"][0][0]["loss"]


def test_bf16_autocast_trains(small_store, tmp_path):
    # four samples: with one, batch normalisation of two views that are alike magnifies rounding up to 8% of the loss
    one_step = [*TINY, "--batch-size", "4", "--epochs", "1", "--epoch-samples", "4"]
    first = {}
    for amp in ("none", "bf16"):
        output = tmp_path / amp
        assert pretrain([str(small_store), str(output), *one_step, "--amp", amp]) == 0
        first[amp] = losses(output)[0]["loss"]
    assert first["bf16"] == pytest.approx(first["none"], rel=0.02)
    assert first["bf16"] != first["none"]


@pytest.fixture
def refused(capfd):
    """Runs the command in this process; it must end with 2 and a sentence, which is returned."""

    def run(*arguments) -> str:
        try:
            code = pretrain([str(a) for a in arguments])
        except SystemExit as wrong_usage:  # argparse's way
            code = wrong_usage.code
        assert code == 2
        return capfd.readouterr().err

    return run


def test_an_output_that_holds_a_run_is_not_overwritten(refused, small_store, unbroken):
    before = {path.name: path.stat().st_mtime_ns for path in unbroken.iterdir()}
    assert "exists already and is not empty; add --c" in refused(small_store, unbroken, *TINY)
    assert before == {path.name: path.stat().st_mtime_ns for path in unbroken.iterdir()}


def test_a_run_does_not_resume_with_other_settings(refused, small_store, unbroken):
    assert "has batch_size = 2, not 4" in refused(small_store, unbroken, "--c", "--batch-size", "4")


def test_resuming_where_there_is_no_run_begins_one_and_says_so(small_store, unbroken, tmp_path, capfd):
    """So that one script serves a job that is queued again and again."""
    output = tmp_path / "new"
    assert pretrain([str(small_store), str(output), *TINY, "--c"]) == 0
    assert f"{output}: there is no run to resume, so a new one begins" in capfd.readouterr().err
    assert losses(output) == losses(unbroken)
    assert pretrain([str(small_store), str(output), *TINY, "--c"]) == 0
    assert "resuming at step 6" in capfd.readouterr().err


def test_resuming_in_a_folder_that_holds_something_else_is_refused(refused, small_store, tmp_path):
    (tmp_path / "letter.txt").write_text("not a run")
    message = refused(small_store, tmp_path, *TINY, "--c")
    assert f"{tmp_path}: holds files but no config.json, so there is no run to resume" in message
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_not_a_store(refused, tmp_path):
    assert f"{tmp_path}: not a store" in refused(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unknown_flags_are_refused(refused, small_store, tmp_path):
    assert "unrecognized arguments: --learning-rate" in refused(small_store, tmp_path / "run", "--learning-rate", "1")


def test_a_device_that_is_not_there(refused, small_store, tmp_path):
    assert "device 'cuda:7' cannot be used" in refused(small_store, tmp_path / "run", "--device", "cuda:7")
    assert not (tmp_path / "run").exists()


def test_a_misspelt_device(refused, small_store, tmp_path):
    message = refused(small_store, tmp_path / "run", "--device", "cude")
    assert message.strip() == "error: device 'cude' is unknown; use cpu, cuda or auto"


def test_output_that_cannot_be_made(refused, small_store, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(small_store, tmp_path / "file" / "run", *TINY)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_is_named(refused, small_store, unbroken, tmp_path, content):
    output = tmp_path / "run"
    output.mkdir()
    (output / "config.json").write_bytes((unbroken / "config.json").read_bytes())
    (output / "checkpoint_latest.pth").write_bytes(content)
    message = refused(small_store, output, "--c")
    assert str(output / "checkpoint_latest.pth") in message and "cannot resume from this file" in message
    assert (output / "checkpoint_latest.pth").read_bytes() == content


def test_a_checkpoint_that_would_run_code_does_not(refused, small_store, unbroken, tmp_path):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "owned",)

    output = tmp_path / "run"
    output.mkdir()
    (output / "config.json").write_bytes((unbroken / "config.json").read_bytes())
    torch.save({"student": Hostile()}, output / "checkpoint_latest.pth")
    assert "cannot resume from this file" in refused(small_store, output, "--c")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_another_store_is_noticed(refused, small_store, unbroken, tmp_path, has_checkpoint):
    run, store = tmp_path / "run", tmp_path / "store"
    for folder in (run, store):
        folder.mkdir()
    for name in ("config.json", "checkpoint_latest.pth") if has_checkpoint else ("config.json",):
        (run / name).write_bytes((unbroken / name).read_bytes())
    manifest = json.loads((small_store / "manifest.json").read_text())
    manifest["volumes"].pop("wide")
    for name in ("volumes", "radiographs"):
        (store / name).symlink_to(small_store / name)
    (store / "manifest.json").write_text(json.dumps(manifest))
    assert f"{run}: this run was begun with another store" in refused(store, run, "--c")
    assert {file.name for file in run.iterdir()} <= {"config.json", "checkpoint_latest.pth"}
