"""`cads_pretrain` with restoration, beside the distillation and alone: its files, pictures, refusals."""

import matplotlib.image
import numpy as np
import pytest
import torch
from tiny_run import RESTORATION_ALONE, RESTORATION_WITH_CADS, TINY_RUN
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

BOTH, ALONE = RESTORATION_WITH_CADS, RESTORATION_ALONE
PLAIN = ["--plain", "--encoder-size=b1"]
KINDS = pytest.mark.parametrize("flags", [BOTH, ALONE], ids=["both", "alone"])


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
