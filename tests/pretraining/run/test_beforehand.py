"""What `cads_pretrain` reports before its first step: room on the disk, hours on a CPU, small stores."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from tiny_run import POINTS_ALONE, TINY_RUN

from pretraining.run import beforehand, estimate
from pretraining.run.metrics import read_metrics
from pretraining.train import main as pretrain

ONE_STEP = ["--epochs=1", "--max-hours=1e-9"]


def test_sizes_are_those_of_the_files(small_store, tmp_path, capfd):
    output = tmp_path / "run"
    assert pretrain([str(small_store), str(output), *TINY_RUN, "--epochs=1"]) == 0
    pattern = r"checkpoint (\d+) MB, encoder file (\d+) MB, store (\d+) MB; (.*): .* free"
    *said, where = re.search(pattern, capfd.readouterr().err).groups()
    sizes = [(output / name).stat().st_size for name in ("checkpoint_latest.pth", "cads_encoder.pth")]
    of_store = [file for kind in ("volumes", "radiographs") for file in (small_store / kind).iterdir()]
    sizes.append(sum(file.stat().st_size for file in of_store))
    assert [int(megabytes) for megabytes in said] == pytest.approx([n / 1e6 for n in sizes], rel=0.02, abs=0.51)
    assert where == str(output)


@pytest.mark.parametrize(("megabytes", "is_enough"), [(240, False), (300, True)])
def test_a_disk_that_will_not_hold_the_run_is_warned_about(
    megabytes, is_enough, small_store, tmp_path, capfd, monkeypatch
):
    """A checkpoint of the smallest run takes 113 MB, and there may be two."""
    usage = beforehand.shutil.disk_usage(tmp_path)._replace(free=megabytes * 10**6)
    monkeypatch.setattr(beforehand.shutil, "disk_usage", lambda path: usage)
    assert pretrain([str(small_store), str(tmp_path / "run"), *TINY_RUN, *ONE_STEP]) == 0
    said = capfd.readouterr().err
    assert f"{tmp_path / 'run'}: {megabytes} MB free" in said
    assert (f"{megabytes} MB are free, but the run needs" in said) != is_enough


def test_hours_on_a_cpu_are_reported_and_a_long_run_is_warned_about(small_store, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(beforehand, "LONG_HOURS", 1)
    small = ["--preset=small", "--encoder-size=b0", "--batch-size=2", "--point-crop-size", "16", "32", "32"]
    flags = [*small, "--amp=none", "--device=cpu", "--max-hours=1e-9"]
    assert pretrain([str(small_store), str(tmp_path / "long"), *flags, "--epochs=200"]) == 0
    said = capfd.readouterr().err
    hours = float(re.search(r"on this CPU: about ([\d.]+) hours", said)[1])
    days = int(re.search(r"warning: that is (\d+) days; the presets small and published are for GPUs, demo", said)[1])
    assert 1 < hours <= 24 * days + 0.1 and 24 * (days - 1) < hours
    assert said.index("on this CPU") < said.index("stopped by")
    assert pretrain([str(small_store), str(tmp_path / "short"), *POINTS_ALONE, *ONE_STEP]) == 0
    said = capfd.readouterr().err
    assert re.search(r"on this CPU: about [\d.]+ (minutes|seconds)", said) and "days" not in said


def test_the_forecast_changes_nothing_of_the_run(small_store, tmp_path, monkeypatch):
    runs = {}
    for name, cost in (("with", estimate._step_cost), ("without", lambda *_: 1.0)):
        monkeypatch.setattr(estimate, "_step_cost", cost)
        assert pretrain([str(small_store), str(tmp_path / name), *TINY_RUN, "--epochs=1"]) == 0
        content = torch.load(tmp_path / name / "checkpoint_latest.pth", weights_only=True)
        runs[name] = [*content["student"].values(), *content["teacher"].values(), content["center"]]
    assert all(torch.equal(a, b) for a, b in zip(runs["with"], runs["without"], strict=True))


@pytest.mark.parametrize(("epoch_samples", "epoch"), [(0, "one batch"), (65, "2 batches")])
def test_a_store_of_less_than_a_batch(epoch_samples, epoch, small_store, tmp_path, capfd):
    output = tmp_path / "run"
    flags = ["--batch-size=64", "--epochs=1", f"--epoch-samples={epoch_samples}"]
    assert pretrain([str(small_store), str(output), *POINTS_ALONE, *flags]) == 0
    said = capfd.readouterr().err
    count = re.search(r"(\d+) sub-volumes of 3 volumes", said)[1]
    assert f"the store has {count} sub-volumes and a batch takes 64, so each batch shows some of them more" in said
    assert f"an epoch is {epoch};" in said
    assert len(read_metrics(output / "metrics.jsonl")) == (1 if epoch_samples == 0 else 2)


def test_commands_to_paste_are_quoted(small_store, tmp_path, capfd):
    """With spaces, an umlaut and an apostrophe in the paths."""
    folder = tmp_path / "Jürgen's CTs"
    folder.mkdir()
    store, output = folder / "the store", folder / "a run"
    store.symlink_to(small_store)
    flags = [*TINY_RUN, "--epochs=1", "--epoch-samples=4"]
    assert pretrain([str(store), str(output), *flags, "--max-hours=1e-9"]) == 0
    command = re.search("resume with: (.*)", capfd.readouterr().err)[1]
    assert shlex.split(command) == ["cads_pretrain", str(store), str(output), "--c"]
    assert pretrain([*shlex.split(command)[1:], "--max-hours=0"]) == 0
    assignment = re.search("export (nnUNet_cads_encoder=.*)", capfd.readouterr().err)[1]
    name, _, value = shlex.split(assignment)[0].partition("=")
    assert name == "nnUNet_cads_encoder" and Path(value).is_file()
