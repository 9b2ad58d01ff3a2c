"""Dice from nnU-Net's summary against SimpleITK's own, and the picture of held-out cases."""

import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunetv2_cads.comparison.overlay import OverlayRow, write_overlay
from nnunetv2_cads.demo.scores import read_scores

LABELS = {"background": 0, "ball": 1, "box": 2, "cone": 3}


@pytest.fixture
def cases(tmp_path):
    """Folders of two images, their truths and predictions; only the second case has a cone."""
    rng = np.random.default_rng(0)
    for name in ("images", "truths", "predictions"):
        (tmp_path / name).mkdir()
    for i in range(2):
        truth = rng.integers(0, 3 + i, (6, 8, 9)).astype(np.uint8)
        prediction = np.where(rng.random(truth.shape) < 0.7, truth, 0).astype(np.uint8)
        image = (100 * truth).astype(np.int16)
        for folder, file, array in (
            ("images", f"case_{i}_0000", image),
            ("truths", f"case_{i}", truth),
            ("predictions", f"case_{i}", prediction),
        ):
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / folder / f"{file}.nii.gz"))
    return tmp_path


@pytest.fixture
def scores(cases):
    """Read from a summary that nnU-Net's functions wrote."""
    pairs = [[str(cases / kind / f"case_{i}.nii.gz") for kind in ("truths", "predictions")] for i in range(2)]
    per_case = [compute_metrics(*pair, SimpleITKIO(), [1, 2, 3]) for pair in pairs]
    mean = {k: {"Dice": np.nanmean([case["metrics"][k]["Dice"] for case in per_case])} for k in (1, 2, 3)}
    foreground = {"Dice": np.mean([values["Dice"] for values in mean.values()])}
    summary = {"metric_per_case": per_case, "mean": mean, "foreground_mean": foreground}
    recursive_fix_for_json_export(summary)
    save_summary_json(summary, str(cases / "summary.json"))
    return read_scores(cases / "summary.json", LABELS)


def test_dice_agrees_with_itk(cases, scores):
    assert scores.cases.keys() == {"case_0", "case_1"}
    for name, by_organ in scores.cases.items():
        measure = sitk.LabelOverlapMeasuresImageFilter()
        measure.Execute(*(sitk.ReadImage(str(cases / kind / f"{name}.nii.gz")) for kind in ("truths", "predictions")))
        for organ in ("ball", "box"):
            assert by_organ[organ] == pytest.approx(measure.GetDiceCoefficient(LABELS[organ]))


def test_an_organ_that_neither_has_does_not_count(scores):
    assert math.isnan(scores.cases["case_0"]["cone"])
    assert scores.mean["cone"] == scores.cases["case_1"]["cone"] > 0.5
    assert scores.mean_dice == pytest.approx(np.mean(list(scores.mean.values())))


def test_scores_are_written_and_shown_organ_by_organ(cases, scores):
    scores.write(cases / "dice.json")
    content = json.loads((cases / "dice.json").read_text())
    assert (content["mean"], content["mean_dice"]) == (scores.mean, scores.mean_dice)
    assert content["cases"]["case_1"] == scores.cases["case_1"]
    title, *rows = scores.table().splitlines()
    assert title.split() == ["Dice", "mean", "case", "0", "case", "1"]
    ball = [scores.mean["ball"], *(case["ball"] for case in scores.cases.values())]
    assert rows[0].split() == ["ball", *(f"{value:.2f}" for value in ball)]


def test_overlay_shows_each_case_with_the_organs_in_colour(cases):
    rows = [
        OverlayRow(
            truth.name,
            cases / "images" / truth.name.replace(".nii.gz", "_0000.nii.gz"),
            {"truth": truth, "prediction": cases / "predictions" / truth.name},
        )
        for truth in sorted((cases / "truths").glob("*.nii.gz"))
    ]
    write_overlay(cases / "overlay.png", rows, LABELS)
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(cases / "overlay.png")))[..., :3].astype(int)
    assert min(image.shape[:2]) > 300
    coloured = np.ptp(image, axis=2) > 60
    rows = np.array_split(coloured, 2)  # a row per case
    assert all(row.mean() > 0.02 for row in rows)
