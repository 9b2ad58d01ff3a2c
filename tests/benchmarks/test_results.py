"""Surface Dice, and tables from records whose answer is known."""

import math

import numpy as np
import pytest
from few_labels.report import comparison_table, table
from few_labels.results import read_results, write_results
from few_labels.scores import difference, iterations_to_reach, scores_of

from nnunetv2_cads.comparison.gains import mean_and_sd
from nnunetv2_cads.comparison.surface import normalised_surface_dice


def cube(start: int, size: int = 10) -> np.ndarray:
    mask = np.zeros((30, 30, 30), bool)
    mask[start : start + size, 10:20, 10:20] = True
    return mask


def test_surface_dice_counts_what_lies_within_the_tolerance():
    assert normalised_surface_dice(cube(5), cube(5), (1, 1, 1), 0.0) == 1.0
    assert normalised_surface_dice(cube(5), cube(6), (1, 1, 1), 1.0) == 1.0
    off = normalised_surface_dice(cube(5), cube(8), (1, 1, 1), 1.0)
    assert off == normalised_surface_dice(cube(8), cube(5), (1, 1, 1), 1.0) and 0.5 < off < 0.8
    assert normalised_surface_dice(cube(5), cube(8), (1 / 3, 1, 1), 1.0) == 1.0
    nothing = np.zeros((30, 30, 30), bool)
    assert normalised_surface_dice(nothing, cube(5), (1, 1, 1)) == 0.0
    assert math.isnan(normalised_surface_dice(nothing, nothing, (1, 1, 1)))


def test_a_results_file_keeps_what_tables_show(tmp_path):
    scores = [
        {"case": case, "organ": organ, "dice": dice, "nsd": nsd}
        for case, organ, dice, nsd in (
            ("x", "liver", 0.12345678, 0.5), ("x", "spleen", None, math.nan),
            ("y", "liver", 0.0, 1.0), ("y", "spleen", 0.98765432, 0.25),
        )
    ]  # fmt: skip
    run = {"task": "torsos", "arm": "a", "labels": 1, "seed": 0, "curve": [1.0], "scores": scores, "milestones": []}
    path = tmp_path / "results.json"
    write_results(path, [run, run | {"seed": 1}], {"probes": {"a": 2 / 3}}, {"recipe": {"lr": 1e-9}})
    found = read_results(path)
    assert found["probes"]["a"] == pytest.approx(2 / 3) and found["recipe"] == {"lr": 1e-9}
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    for row, kept in zip(scores, found["runs"][0]["scores"], strict=True):
        assert (row["case"], row["organ"]) == (kept["case"], kept["organ"])
        assert kept["dice"] == (row["dice"] if row["dice"] is None else pytest.approx(row["dice"], abs=1e-6))
    assert found["runs"][0]["scores"][1]["nsd"] is None
    write_results(tmp_path / "again.json", found.pop("runs"), {"probes": found["probes"]}, {"recipe": found["recipe"]})
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def run(arm: str, labels: int, seed: int, dice: dict[str, tuple]) -> dict:
    scores = [
        {"case": case, "organ": f"o{i}", "dice": score, "nsd": score}
        for case, of_organs in dice.items()
        for i, score in enumerate(of_organs)
    ]
    return {"task": "torsos", "arm": arm, "labels": labels, "seed": seed, "scores": scores}


RUNS = [
    run("a", 1, 0, {"x": (0.4, 0.6), "y": (0.2, None)}),
    run("a", 1, 1, {"x": (0.7, 0.7), "y": (0.5, 0.5)}),
    run("b", 1, 0, {"x": (0.3, 0.3), "y": (0.1, 0.1)}),
    run("b", 2, 0, {"x": (0.9, 0.9)}),
]


def test_means_are_over_organs_then_cases_and_the_deviation_over_seeds():
    scores = scores_of(RUNS, "torsos")
    assert scores["a", 1][0] == pytest.approx({"x": 0.5, "y": 0.2})
    mean, sd = mean_and_sd(scores, "a", 1)
    assert mean == pytest.approx((0.35 + 0.6) / 2) and sd == pytest.approx(0.25 / math.sqrt(2))
    assert mean_and_sd(scores, "b", 4) is None
    assert not scores_of(RUNS, "head_and_neck")


def test_differences_are_paired_over_the_seeds_that_both_arms_have():
    assert difference(scores_of(RUNS, "torsos"), "a", "b", 1) == "+15.0"
    gains = enumerate((0.1, 0.15, 0.2))
    seeds = [run("a", 1, seed, {"x": (0.4 + gain,), "y": (0.4 + gain,)}) for seed, gain in gains]
    seeds += [run("b", 1, seed, {"x": (0.4,), "y": (0.4,)}) for seed in range(3)]
    found = difference(scores_of(seeds, "torsos"), "a", "b", 1)
    assert found == "+15.0 (+2.6 to +27.4)"  # Student's: 5.0 / sqrt(3) x 4.30 each way


def test_tables_have_a_row_for_each_arm_or_pair_that_was_run():
    lines = table(RUNS, "torsos", ["b", "a"], [1, 2], "b").splitlines()
    assert lines[2].startswith("| b | 0.200 ± nan | 0.900 ± nan |  |  |")
    assert lines[3].startswith("| a | 0.475 ± 0.177 |  | +15.0 |")
    lines = comparison_table(RUNS, "torsos", [("a", "b"), ("a", "c")], [1, 2]).splitlines()
    assert len(lines) == 3 and lines[2] == "| a - b | +15.0 |  |"


def test_iterations_to_reach_the_others_last_value():
    def curve(arm, values):
        points = [{"iteration": 10 * (i + 1), "dice": value} for i, value in enumerate(values)]
        return {"task": "torsos", "arm": arm, "labels": 1, "milestones": points}

    runs = [curve("slow", (0.1, 0.3, 0.5)), curve("fast", (0.2, 0.6, 0.6)), curve("never", (0.1, 0.1, 0.1))]
    assert iterations_to_reach(runs, "torsos", "fast", "slow", 1) == "20 of 30"
    assert iterations_to_reach(runs, "torsos", "never", "slow", 1) == "not within 30"
