"""`cads_pretrain` with restoration, beside the distillation and alone: its files, resuming, ranks, refusals."""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from tiny_run import TINY_RUN
from torch import nn

from nnunetv2_cads.doctor.cli import main as doctor
from nnunetv2_cads.encoder_file.read import read_encoder_file
from nnunetv2_cads.network_architecture import PVTUNet
from nnunetv2_cads.training.pretrained_encoder import load_pretrained_encoder
from pretraining.config import PretrainConfig
from pretraining.export import main as export
from pretraining.run.metrics import read_metrics
from pretraining.store.store import Store
from pretraining.train import main as pretrain
from pretraining.views.corrupted_crops import make_crop
from pretraining.views.subvolumes import SubVolumes

RESTORATION = [*TINY_RUN, "--epochs=2", "--restoration-weight=1", "--restored-crop-size", "16", "32", "32"]
BOTH = [*RESTORATION, "--token-weight=0.5", "--ray-weight=0.25"]
ALONE = [*RESTORATION, "--distillation-weight=0"]
PLAIN = ["--plain", "--encoder-size=b1"]
KINDS = pytest.mark.parametrize("flags", [BOTH, ALONE], ids=["both", "alone"])


def losses(run) -> list[tuple[float, float]]:
    return [(line["loss"], line["loss_restoration"]) for line in read_metrics(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def unbroken(small_store, tmp_path_factory):
    """Finds a finished run of some flags; each is made once."""
    runs = {}

    def run(flags):
        key = tuple(flags)
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("runs") / "run"
            assert pretrain([str(small_store), str(runs[key]), *flags]) == 0
        return runs[key]

    return run


@KINDS
def test_a_run_writes_its_losses_and_a_picture_of_what_it_restores(unbroken, flags):
    run = unbroken(flags)
    lines = read_metrics(run / "metrics.jsonl")
    assert len(lines) == 4
    for line in lines:
        expected = line["loss_restoration"]
        if flags is BOTH:
            expected += np.mean([line[f"loss_stage{stage}"] for stage in range(1, 5)])
            expected += 0.5 * line["loss_tokens"] + 0.25 * line["loss_rays"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert ("mutual_information" in line) == ("loss_stage1" in line) == (flags is BOTH)
    picture = matplotlib.image.imread(run / "restored.png")
    assert min(picture.shape[:2]) > 200 and picture[..., :3].std() > 0.1
    assert matplotlib.image.imread(run / "progress.png").shape[0] > 200


@KINDS
def test_a_stopped_run_resumes_exactly(small_store, unbroken, tmp_path, flags):
    run = tmp_path / "run"
    assert pretrain([str(small_store), str(run), *flags, "--max-hours=1e-9"]) == 0
    assert len(losses(run)) == 1
    assert pretrain([str(small_store), str(run), "--c", "--max-hours=0"]) == 0
    assert losses(run) == losses(unbroken(flags))
    ours, theirs = (
        torch.load(folder / "checkpoint_latest.pth", weights_only=True) for folder in (run, unbroken(flags))
    )
    for part in ("student", "teacher"):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(value, theirs[part][key]) for key, value in ours[part].items())


@KINDS
def test_two_processes_do_what_one_does(small_store, unbroken, tmp_path, flags):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "pretraining.train", str(small_store), str(tmp_path / "run"), *flags]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(unbroken(flags)), rtol=2e-4)
    assert (tmp_path / "run" / "restored.png").exists()


def test_a_window_is_what_student_and_encoder_file_are_told(small_store, tmp_path):
    run = tmp_path / "run"
    window = ["--intensity-window", "-100", "300", "--num-workers=0"]
    assert pretrain([str(small_store), str(run), *ALONE, *window, "--max-hours=1e-9"]) == 0
    record = read_encoder_file(run / "checkpoint_latest.pth").record
    assert (record.clip_hu, record.intensity_center_hu, record.intensity_scale_hu) == ((-100, 300), 100, 200)
    assert "crop_size" not in record.notes
    config = PretrainConfig().replace(intensity_window=(-100.0, 300.0), restored_crop_size=(16, 32, 32))
    store = Store.open(small_store)
    crop = make_crop(store, SubVolumes(store, config.view)[2], config, np.random.default_rng(0))
    shown = ((crop.truth - 100) / 200).clamp(-1, 1)
    torch.testing.assert_close(crop.seen[~crop.judged], shown[~crop.judged])


def test_an_encoder_that_only_restored_is_exported_and_found_sound(unbroken, tmp_path, capfd):
    assert export([str(unbroken(ALONE)), str(tmp_path / "encoder.safetensors")]) == 0
    doctor(["--encoder", str(tmp_path / "encoder.safetensors")])
    assert "encoder.safetensors: 180 matched, 0 missing" in (said := capfd.readouterr().out)
    assert "; for 3D configurations alone" in said


def test_fine_tuning_starts_from_an_encoder_that_only_restored(unbroken):
    path = unbroken(ALONE) / "cads_encoder.pth"
    encoder = PVTUNet(1, 2, nn.Conv3d, size="b0").encoder
    loaded = load_pretrained_encoder(encoder, path, 1)
    assert not loaded.report.missing and not loaded.report.unexpected
    assert read_encoder_file(path).record.notes["restored_crop_size"] == [16, 32, 32]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--restoration-weight=1", "--restored-crop-size", "8", "32", "32"],
            "restored_crop_size must be at least (",
        ),
        (
            ["--restoration-weight=1", "--restored-crop-size", "32", "32", "32"],
            "window_slices must be at least",
        ),
        (
            ["--restoration-window", "300", "100"],
            "restoration_window must be rising, from -1024 to 1024, got (300.0, 100.0)",
        ),
        (["--token-weight=1"], "--token-weight and --ray-weight need crops and heads"),
        ([*PLAIN, "--restoration-weight=1"], "--plain has no --restoration-weight; leave it out"),
        ([*PLAIN, "--intensity-window", "0", "80"], "or give its default (--intensity-window -1024.0 1024.0)"),
    ],
)
def test_settings_that_cannot_work_are_refused(small_store, tmp_path, capfd, flags, sentence):
    assert pretrain([str(small_store), str(tmp_path / "run"), *TINY_RUN, *flags]) == 2
    assert sentence in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
