"""Loss, schedules, uniform sampling and the whole training step against numbers of the published code."""

import json

import numpy as np
import pytest
import torch

from pretraining.config import PretrainConfig
from pretraining.method.loss import deep_distillation_loss, update_center
from pretraining.method.pretrainer import Pretrainer
from pretraining.method.schedules import cosine, linspace, warmup_cosine
from pretraining.views.uniform_sampling import gather_patches, kept_patches

RELATIVE_LOSS, ABSOLUTE_SUM, RELATIVE_SQUARES = 1e-4, 1e-3, 1e-6


def test_reference_loss(reference_dir):
    arrays = np.load(reference_dir / "loss_reference.npz")
    recorded = json.loads((reference_dir / "loss_reference.json").read_text())
    names = sorted(arrays)
    students = [torch.from_numpy(arrays[n]) for n in names if n.startswith("student")]
    teacher = torch.from_numpy(next(arrays[n] for n in names if n.startswith("teacher")))
    center = torch.from_numpy(next(arrays[n] for n in names if n.startswith("center"))).flatten()
    assert len(students) == 4
    for epoch, expected in recorded.items():
        temperature = linspace(0.04, 0.07, 50, int(epoch))
        assert temperature == pytest.approx(expected["teacher_temp"], rel=1e-9)
        terms = deep_distillation_loss(students, teacher, center, temperature, student_temp=0.1)
        assert terms.total.item() == pytest.approx(expected["total"], rel=RELATIVE_LOSS)
        for stage, value in enumerate(terms.stage_losses.tolist(), 1):
            assert value == pytest.approx(expected[f"level{stage}"], rel=RELATIVE_LOSS)
        after = update_center(center, teacher.mean(0), 0.9).numpy()
        np.testing.assert_allclose(after, np.ravel(expected["center_after"]), atol=1e-6)


def test_reference_schedules(reference_dir):
    recorded = json.loads((reference_dir / "schedules_reference.json").read_text())
    total = len(recorded["lr"])
    steps = range(total)
    np.testing.assert_allclose(
        [warmup_cosine(5.625e-4, 2e-6, 2 * total // 10, total, i) for i in steps], recorded["lr"], rtol=1e-9, atol=1e-15
    )
    np.testing.assert_allclose([cosine(0.04, 0.4, total, i) for i in steps], recorded["weight_decay"], rtol=1e-9)
    np.testing.assert_allclose([cosine(0.996, 1.0, total, i) for i in steps], recorded["momentum"], rtol=1e-9)


def test_reference_uniform_sampling(reference_dir):
    recorded = json.loads((reference_dir / "uniform_sampling_reference.json").read_text())
    crop, patch = recorded["crop"], tuple(recorded["patch"])
    expected = np.array(recorded["kept_patch_index_row_major"])
    height, width = crop[1] // patch[1], crop[2] // patch[2]
    z, rest = np.divmod(expected, height * width)
    y, x = np.divmod(rest, width)
    positions = np.full((crop[0] // patch[0], height // 2, width // 2), -1)
    positions[z, y // 2, x // 2] = 2 * (y % 2) + x % 2
    assert (positions >= 0).all()  # one patch of every group
    assert (np.bincount(positions.ravel()) == positions.size // 4).all()
    np.testing.assert_array_equal(kept_patches(positions), expected)
    # every voxel of the result shows the patch it should: fill each patch with its own index
    grid = np.arange(positions.size * 4).reshape(-1, height, width)
    view = grid.repeat(patch[0], 0).repeat(patch[1], 1).repeat(patch[2], 2)
    sampled = gather_patches(view, patch, kept_patches(positions))
    np.testing.assert_array_equal(sampled[:: patch[0], :: patch[1], :: patch[2]].ravel(), expected)
    assert (sampled == sampled[:: patch[0], :: patch[1], :: patch[2]].repeat(patch[0], 0).repeat(patch[1], 1).repeat(
        patch[2], 2)).all()  # fmt: skip


@pytest.fixture(scope="module")
def training_run(reference_dir, set_reference_weights):
    """The recorded steps, and ours as (result, tensors after the step), through the class that cads_pretrain runs."""
    recorded = json.loads((reference_dir / "training_reference.json").read_text())
    c = recorded["config"]
    config = PretrainConfig().replace(
        batch_size=c["batch_size"], head_out_dim=c["out_dim"], epochs=c["epochs"], min_lr=c["min_lr"],
        lr=c["lr_peak"] * 256 / c["batch_size"], warmup_epochs=c["warmup_epochs"], weight_decay=c["weight_decay"],
        teacher_momentum=c["momentum"], teacher_temp=c["teacher_temp"], clip_grad=c["clip_grad"],
        warmup_teacher_temp_epochs=c["warmup_teacher_temp_epochs"], student_temp=c["student_temp"],
        freeze_last_layer_epochs=c["freeze_last_layer_epochs"], center_momentum=c["center_momentum"],
        drop_path_rate=c["drop_path"],
    )  # fmt: skip
    pretrainer = Pretrainer(config, c["iterations_per_epoch"], torch.device("cpu"))
    set_reference_weights(pretrainer.student)
    pretrainer.teacher.load_state_dict(pretrainer.student.state_dict(), strict=False)
    rng = np.random.default_rng(c["input_seed"])
    ours = []
    for _ in recorded["steps"]:
        shapes = [(c["batch_size"], 1, 16, 48, 48)] * 2 + [(c["batch_size"], 1, 96, 96)]
        views = [torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
        result = pretrainer.train_step(*views)
        state = {"student": pretrainer.student.state_dict(), "teacher": pretrainer.teacher.state_dict()}
        state["student_shallow"] = state["student"]
        sums = {
            (part, key): (value[key].double().sum().item(), value[key].double().square().sum().item())
            for part, value in state.items() for key in recorded["steps"][0][part]
        }  # fmt: skip
        sums["center"] = pretrainer.center.double().sum().item(), pretrainer.center.double().square().sum().item()
        ours.append((result, sums))
    groups = [len(group["params"]) for group in pretrainer.optimizer.param_groups]
    return recorded, c, groups, ours


def test_reference_training_losses_and_clipping(training_run):
    recorded, c, groups, ours = training_run
    assert groups == recorded["n_groups"]
    for expected, (result, _) in zip(recorded["steps"], ours, strict=True):
        assert result.loss.item() == pytest.approx(expected["loss"], rel=RELATIVE_LOSS)
        for stage, value in enumerate(result.stage_losses.tolist(), 1):
            assert value == pytest.approx(expected[f"level{stage}"], rel=RELATIVE_LOSS)
        assert len(result.gradient_norms) == expected["n_grads"]
        assert int((result.gradient_norms > c["clip_grad"]).sum()) == expected["n_clipped"]


def test_reference_training_weights_and_center(training_run):
    recorded, _, _, ours = training_run
    for expected, (_, sums) in zip(recorded["steps"], ours, strict=True):
        wanted = {("student", k): v for k, v in expected["student"].items()}
        wanted |= {("student_shallow", k): v for k, v in expected["student_shallow"].items()}
        wanted |= {("teacher", k): v for k, v in expected["teacher"].items()} | {"center": expected["center"]}
        for key, (total, squares) in wanted.items():
            assert sums[key][0] == pytest.approx(total, abs=ABSOLUTE_SUM), (expected["step"], key)
            assert sums[key][1] == pytest.approx(squares, rel=RELATIVE_SQUARES), (expected["step"], key)
