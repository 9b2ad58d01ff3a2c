"""`cads_pretrain` with the contrast of points, beside the distillation and alone: files, pictures, refusals."""

import matplotlib.image
import numpy as np
import pytest
from tiny_run import POINTS_ALONE, POINTS_WITH_CADS, TINY_RUN
from torch import nn

from nnunetv2_cads.encoder_file.read import read_encoder_file
from nnunetv2_cads.network_architecture import PVTUNet
from nnunetv2_cads.training.pretrained_encoder import load_pretrained_encoder
from pretraining.run.metrics import read_metrics
from pretraining.train import main as pretrain

BOTH, ALONE = POINTS_WITH_CADS, POINTS_ALONE
KINDS = pytest.mark.parametrize("flags", [BOTH, ALONE], ids=["both", "alone"])
LEVELS = ("stem", "stage1", "stage2", "stage3")


@KINDS
def test_a_run_writes_its_losses_and_a_picture_of_where_it_finds_points(unbroken, flags):
    run = unbroken(flags)
    lines = read_metrics(run / "metrics.jsonl")
    assert len(lines) == 4
    for line in lines:
        expected = 2 * line["loss_points"]
        if flags is BOTH:
            expected += np.mean([line[f"loss_stage{stage}"] for stage in range(1, 5)])
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert ("mutual_information" in line) == (flags is BOTH)
        assert all(0 <= line[f"points_found_{level}"] <= 1 for level in LEVELS)
    picture = matplotlib.image.imread(run / "points.png")
    assert min(picture.shape[:2]) > 400 and picture[..., :3].std() > 0.1
    assert matplotlib.image.imread(run / "progress.png").shape[0] > 200
    assert not (run / "restored.png").exists()


def test_fine_tuning_starts_from_an_encoder_that_only_found_points(unbroken):
    path = unbroken(ALONE) / "cads_encoder.pth"
    loaded = load_pretrained_encoder(PVTUNet(1, 2, nn.Conv3d, size="b0").encoder, path, 1)
    assert not loaded.report.missing and not loaded.report.unexpected
    notes = read_encoder_file(path).record.notes
    assert notes["point_crop_size"] == [16, 32, 32] and "crop_size" not in notes


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--distillation-weight=0"], "must be above 0 where --restoration-weight and --point-weight are 0, got 0.0"),
        (["--point-weight=1", "--point-crop-size", "8", "32", "32"], "point_crop_size must be at least (15, 29, 29)"),
        (["--point-rotation", "0", "0", "100"], "point_rotation must be from 0 to 90, got (0.0, 0.0, 100.0)"),
        (["--point-scale", "1.2", "0.8"], "point_scale must be positive and rising, got (1.2, 0.8)"),
        (["--point-level-weights", "0", "0", "0", "0", "0"], "point_level_weights must be at least 0, not all 0"),
        (["--plain", "--encoder-size=b1", "--point-weight=1"], "--plain has no --point-weight; leave it out"),
        (["--preset=demo", "--xray-weight=0"], "--xray-weight is of CADS's distillation, which this run does not have"),
        ([*ALONE, "--crop-size", "16", "64", "64"], "--crop-size is of CADS's distillation"),
    ],
)
def test_settings_that_cannot_work_are_refused(small_store, tmp_path, capfd, flags, sentence):
    assert pretrain([str(small_store), str(tmp_path / "run"), *TINY_RUN, *flags]) == 2
    assert sentence in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_estimate_counts_the_pairs(small_store, tmp_path, capfd):
    gflop = []
    for depth in ("16", "32"):
        flags = [*ALONE, "--point-crop-size", depth, "64", "64", "--estimate"]
        assert pretrain([str(small_store), str(tmp_path / "run"), *flags]) == 0
        gflop.append(float(capfd.readouterr().err.split(" GFLOP per step")[0].split()[-1]))
    assert 1.8 < gflop[1] / gflop[0] < 2.2
