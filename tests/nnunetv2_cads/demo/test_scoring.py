"""Dice against SimpleITK's own, and the picture of held-out cases."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_cads.demo.overlay import write_overlay
from nnunetv2_cads.demo.scoring import dice, mean_by_label, score_folder, write_scores

LABELS = {"background": 0, "ball": 1, "box": 2}


@pytest.fixture
def cases(tmp_path):
    """Folders of two images, their truths and predictions."""
    rng = np.random.default_rng(0)
    for name in ("images", "truths", "predictions"):
        (tmp_path / name).mkdir()
    for i in range(2):
        truth = rng.integers(0, 3, (6, 8, 9)).astype(np.uint8)
        prediction = np.where(rng.random(truth.shape) < 0.7, truth, 0).astype(np.uint8)
        image = (100 * truth).astype(np.int16)
        for folder, file, array in (
            ("images", f"case_{i}_0000", image),
            ("truths", f"case_{i}", truth),
            ("predictions", f"case_{i}", prediction),
        ):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / folder / f"{file}.nii.gz"))
    return tmp_path


def test_dice_agrees_with_itk(cases):
    scores = score_folder(cases / "predictions", cases / "truths", LABELS)
    for name, by_label in scores.items():
        measure = sitk.LabelOverlapMeasuresImageFilter()
        measure.Execute(*(sitk.ReadImage(str(cases / kind / f"{name}.nii.gz")) for kind in ("truths", "predictions")))
        for label in ("ball", "box"):
            assert by_label[label] == pytest.approx(measure.GetDiceCoefficient(LABELS[label]))


def test_a_label_that_neither_has_does_not_count(tmp_path):
    empty = np.zeros((2, 2, 2))
    assert np.isnan(dice(empty, empty, 1))
    scores = {"a": {"ball": float("nan")}, "b": {"ball": 0.5}}
    assert mean_by_label(scores) == {"ball": 0.5}
    assert write_scores(tmp_path / "dice.json", scores) == 0.5


def test_scores_are_written_case_by_case(cases):
    scores = score_folder(cases / "predictions", cases / "truths", LABELS)
    mean = write_scores(cases / "dice.json", scores)
    content = json.loads((cases / "dice.json").read_text())
    assert content["cases"] == scores
    assert content["mean_dice"] == mean == pytest.approx(np.mean([list(c.values()) for c in scores.values()]))


def test_overlay_is_a_picture(cases):
    write_overlay(cases / "overlay.png", cases / "images", cases / "truths", cases / "predictions", LABELS)
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(cases / "overlay.png")))
    assert min(image.shape[:2]) > 300
    assert image[..., :3].std() > 10
