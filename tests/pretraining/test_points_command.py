"""`cads_pretrain` with the contrast of points, beside the distillation and alone: files, resuming, ranks, refusals."""

import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from tiny_run import TINY_RUN
from torch import nn

from nnunetv2_cads.encoder_file.read import read_encoder_file
from nnunetv2_cads.network_architecture import PVTUNet
from nnunetv2_cads.training.pretrained_encoder import load_pretrained_encoder
from pretraining.run.metrics import read_metrics
from pretraining.train import main as pretrain

BOTH = [*TINY_RUN, "--epochs=2", "--point-weight=2", "--point-crop-size", "16", "32", "32", "--point-count=32"]
ALONE = [*BOTH, "--distillation-weight=0"]
KINDS = pytest.mark.parametrize("flags", [BOTH, ALONE], ids=["both", "alone"])
LEVELS = ("stem", "stage1", "stage2", "stage3")


def losses(run) -> list[tuple[float, ...]]:
    names = ("loss", "loss_points", *(f"points_found_{level}" for level in LEVELS))
    return [tuple(line[name] for name in names) for line in read_metrics(run / "metrics.jsonl")]


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
    assert (tmp_path / "run" / "points.png").exists()


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
