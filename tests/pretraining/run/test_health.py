"""Runs that go wrong are named, end without harm, or pass over the bad steps; healthy ones raise no alarm."""

import math
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import TINY_RUN

from pretraining.config import PretrainConfig
from pretraining.method.diagnostics import spread_and_rank, step_is_finite
from pretraining.method.pretrainer import Pretrainer
from pretraining.presets import PRESETS
from pretraining.run.health import MOST_SKIPPED, FiniteGuard, HealthWatch, alarms
from pretraining.run.metrics import read_metrics
from pretraining.train import main as pretrain

COMMAND = str(Path(sysconfig.get_path("scripts")) / "cads_pretrain")
TINY = [*TINY_RUN, "--num-workers=0"]
LN_K = math.log(32)
HEALTHY = {"step": 0, "loss": 0.98 * LN_K, "teacher_entropy": 0.7 * LN_K, "mutual_information": 0.4,
           "feature_spread": 0.3, "feature_rank": 5.0, "skipped_steps": 0}  # fmt: skip


def lines(count: int = 3, **values) -> list[dict]:
    return [{**HEALTHY, **values}] * count


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss": LN_K, "teacher_entropy": 0.99 * LN_K, "mutual_information": 0.01}, ["uniform"]),
        ({"loss": 2 * LN_K, "teacher_entropy": 0.01, "mutual_information": 0.001}, ["single output"]),
        ({"teacher_entropy": 0.01, "mutual_information": 0.001}, ["single output"]),
        ({"feature_spread": 1e-3}, ["one point"]),
        ({"points_found_stem": 0.007, "points_found_stage1": 0.004}, ["hardly any point"]),
        ({"points_found_stem": 0.3, "points_found_stage1": 0.004}, []),
        ({"skipped_steps": 2}, ["not finite"]),
        ({"loss": math.nan}, ["not finite"]),
        ({}, []),
        ({"loss": LN_K}, []),  # not yet begun to learn, but the samples do not look alike
        ({"mutual_information": 0.01, "teacher_entropy": LN_K}, []),  # the loss is below chance
    ],
)
def test_alarms_name_what_the_lines_show(values, said):
    names = alarms([*lines(5), *lines(**values)], out_dim=32, point_count=256)
    assert len(names) == len(said) and all(word in name for word, name in zip(said, names, strict=True))
    assert all("--" in advice for advice in names.values())


def test_one_odd_line_raises_no_alarm():
    odd = lines(1, loss=LN_K, teacher_entropy=LN_K, mutual_information=0.0, feature_spread=0.0)
    assert not alarms([*lines(5), *odd, *odd], out_dim=32, point_count=256)
    assert not alarms([*odd, *lines(1), *odd, *odd], out_dim=32, point_count=256)
    assert not alarms([*odd, *odd], out_dim=32, point_count=256)
    assert not alarms([], out_dim=32, point_count=256)


def test_an_alarm_is_reported_once(caplog):
    watch = HealthWatch(32, 256)
    for count in range(1, 8):
        watch.look(lines(count, feature_spread=0.0))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_spread_and_rank_of_known_features():
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((16, 16)))[0][:4]
    features = rng.standard_normal((4000, 4)) @ directions

    def of(values):
        values = torch.from_numpy(values).float()
        centred = values - values.mean(0)
        return [float(x) for x in spread_and_rank(values.mean(0), centred.T @ centred / len(values))]

    spread, rank = of(features)
    assert spread == pytest.approx(1, abs=0.01) and rank == pytest.approx(4, rel=0.02)
    far = features + 100 * directions[0]
    expected = np.sqrt((features.std(0) ** 2).sum() / (far**2).sum(1).mean())
    assert of(far) == pytest.approx([expected, 4], rel=0.02)
    assert of(1e-15 * features) == pytest.approx([1, 4], rel=0.02)  # squares of these variances leave float32
    assert of(np.ones((10, 16))) == [0, 0]


def test_the_line_has_spread_and_rank_of_the_teachers_features():
    config = PretrainConfig().replace(
        **(PRESETS["cads"] | {"encoder_size": "b0", "batch_size": 4, "head_out_dim": 32, "drop_path_rate": 0.0})
    )
    pretrainer = Pretrainer(config, 2, torch.device("cpu"))
    torch.manual_seed(1)
    views = [torch.randn(4, 1, 16, 32, 32), torch.randn(4, 1, 16, 32, 32), torch.randn(4, 1, 64, 64)]
    features = pretrainer.teacher.backbone(torch.cat(views[:2]))[-1].mean((2, 3, 4)).detach().numpy()
    result = pretrainer.train_step(*views)
    eigenvalues = np.linalg.eigvalsh(np.cov(features.T, bias=True).astype(np.float64))
    assert float(result.health.feature_rank) == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-3)
    spread = np.sqrt(eigenvalues.sum() / (features**2).sum(1).mean())
    assert float(result.health.feature_spread) == pytest.approx(spread, rel=1e-3)


def test_a_step_that_is_not_finite_changes_nothing():
    config = PretrainConfig().replace(**(PRESETS["cads"] | {"encoder_size": "b0", "batch_size": 2, "head_out_dim": 32}))
    pretrainer = Pretrainer(config, 2, torch.device("cpu"))
    shapes = (2, 1, 16, 32, 32), (2, 1, 16, 32, 32), (2, 1, 64, 64)
    views = [torch.randn(shape) for shape in shapes]
    pretrainer.step = 1  # at step 0, the learning rate is 0
    assert pretrainer.train_step(*views).finite

    def state() -> list[torch.Tensor]:
        content = pretrainer.state_dict()
        moments = [value for entry in content["optimizer"]["state"].values() for value in entry.values()]
        return [*content["student"].values(), *content["teacher"].values(), content["center"], *moments]

    for spoilt in range(3):
        before = [value.clone() for value in state()]
        bad = [view.clone() for view in views]
        bad[spoilt].view(-1)[7] = (math.nan, math.inf, -math.inf)[spoilt]
        assert not pretrainer.train_step(*bad).finite
        assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    assert pretrainer.train_step(*views).finite
    assert not all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))


def test_fp16_overflows_are_the_scalers_business_until_its_scale_is_below_one():
    overflow, fine = torch.tensor([1.0, math.inf]), torch.ones(2)
    for scale, finite in ((65536.0, True), (1.0, True), (0.5, False)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        assert bool(step_is_finite(fine, overflow, scaler)) == finite
        assert step_is_finite(fine, fine, scaler)
        assert not step_is_finite(overflow, fine, scaler)
    assert not step_is_finite(fine, overflow, torch.amp.GradScaler("cpu", enabled=False))


@pytest.fixture
def spoilt_store(small_store, tmp_path):
    """A store one of whose radiographs is NaN: what no volume can be made to hold."""
    store = tmp_path / "spoilt"
    shutil.copytree(small_store, store)
    path = store / "radiographs" / "small.npy"
    np.save(path, np.full_like(np.load(path), np.nan))
    return store


def test_a_run_that_meets_nan_ends_and_keeps_its_last_checkpoint(small_store, spoilt_store, tmp_path, capfd):
    output = tmp_path / "run"
    assert pretrain([str(small_store), str(output), *TINY, "--max-hours", "1e-9"]) == 0
    before = (output / "checkpoint_latest.pth").read_bytes()
    assert pretrain([str(spoilt_store), str(output), "--c", "--max-hours", "0", "--epochs", "3"]) == 2
    told = capfd.readouterr().err
    assert "not finite" in told and "is unchanged; resume from it with --c" in told and "--on-nan skip" in told
    assert (output / "checkpoint_latest.pth").read_bytes() == before
    assert not (output / "cads_encoder.pth").exists()
    assert all(math.isfinite(line["loss"]) for line in read_metrics(output / "metrics.jsonl"))
    assert pretrain([str(small_store), str(output), "--c", "--max-hours", "0"]) == 0


def test_skip_passes_over_the_bad_steps_and_counts_them(spoilt_store, tmp_path, capfd):
    output = tmp_path / "run"
    arguments = [str(spoilt_store), str(output), *TINY, "--epochs", "6", "--on-nan", "skip"]
    assert pretrain(arguments) == 0
    told = capfd.readouterr().err
    skipped = told.count("is skipped: its loss or gradients are not finite")
    written = read_metrics(output / "metrics.jsonl")
    assert 0 < skipped < 12 and len(written) <= 12 - skipped + 1
    assert 0 < sum(line["skipped_steps"] for line in written) <= skipped
    assert all(math.isfinite(line["loss"]) for line in written)
    assert told.count("some steps had a loss or gradients that are not finite") == 1
    content = torch.load(output / "checkpoint_latest.pth", weights_only=True)
    assert content["step"] == 12
    assert all(value.isfinite().all() for part in ("student", "teacher") for value in content[part].values())
    assert (output / "cads_encoder.pth").exists()


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_resuming_from_weights_that_are_infinite_ends_soon(small_store, tmp_path, capfd, on_nan):
    output = tmp_path / "run"
    assert pretrain([str(small_store), str(output), *TINY, "--epochs", "9", "--max-hours", "1e-9"]) == 0
    path = output / "checkpoint_latest.pth"
    content = torch.load(path, weights_only=True)
    content["student"]["backbone.patch_embed2.proj.weight"].view(-1)[0] = math.inf
    torch.save(content, path)
    before = path.read_bytes()
    capfd.readouterr()
    assert pretrain([str(small_store), str(output), "--c", "--max-hours", "0", "--on-nan", on_nan]) == 2
    assert "the run ends without saving" in capfd.readouterr().err
    assert path.read_bytes() == before


def test_a_rate_that_blows_the_weights_up_never_saves_them(small_store, tmp_path):
    output = tmp_path / "run"
    command = [COMMAND, str(small_store), str(output), *TINY, "--lr", "1e300"]
    result = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert result.returncode == 2 and "there is no checkpoint yet" in result.stderr
    assert "Traceback" not in result.stderr and "a lower --lr" in result.stderr
    assert not (output / "checkpoint_latest.pth").exists()


def test_skip_gives_up_after_many_in_a_row():
    class Result:
        finite = torch.tensor(False)

    class Good:
        finite = torch.tensor(True)

    guard = FiniteGuard("skip", reports=False)
    said = [guard.must_end(step, Result()) for step in range(MOST_SKIPPED - 1)]
    assert not any(said) and not guard.must_end(9, Good())
    said = [guard.must_end(step, Result()) for step in range(MOST_SKIPPED)]
    assert said == [False] * (MOST_SKIPPED - 1) + [True]
    assert FiniteGuard("stop", reports=False).must_end(0, Result())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], None),
        (["--no-head-batch-norm", "--lr", "10", "--teacher-momentum", "0.5", "1"], "the same single output"),
        (["--teacher-temp", "5", "5"], "the same, uniform output"),
    ],
    ids=["healthy", "one output", "uniform"],
)
def test_a_run_made_to_collapse_is_named_and_a_healthy_one_is_not(small_store, tmp_path, capfd, flags, said):
    one_epoch = ["--epochs", "1", "--epoch-samples", "12", "--warmup-epochs", "0"]
    assert pretrain([str(small_store), str(tmp_path / "run"), *TINY, *one_epoch, *flags]) == 0
    told = [line for line in capfd.readouterr().err.splitlines() if "health, step" in line]
    assert len(told) == (said is not None)
    assert said is None or (said in told[0] and "begin a run with" in told[0])
