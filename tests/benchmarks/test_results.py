"""Surface Dice, and tables from records whose answer is known."""

import itertools
import math

import numpy as np
import pytest
from few_labels.report import comparison_table, table
from few_labels.results import read_results, records_of, write_results
from few_labels.scores import case_scores, iterations_to_reach, mean_and_sd, paired

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
    assert [row["seed"] for row in records_of(found["runs"])] == [0] * 4 + [1] * 4
    for row, kept in zip(scores, found["runs"][0]["scores"], strict=True):
        assert (row["case"], row["organ"]) == (kept["case"], kept["organ"])
        assert kept["dice"] == (row["dice"] if row["dice"] is None else pytest.approx(row["dice"], abs=1e-6))
    assert found["runs"][0]["scores"][1]["nsd"] is None
    write_results(tmp_path / "again.json", found.pop("runs"), {"probes": found["probes"]}, {"recipe": found["recipe"]})
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def rows(arm: str, labels: int, seed: int, dice: dict[str, tuple]) -> list[dict]:
    run = {"task": "torsos", "arm": arm, "labels": labels, "seed": seed}
    return [
        run | {"case": case, "organ": f"o{i}", "dice": score, "nsd": score}
        for case, scores in dice.items()
        for i, score in enumerate(scores)
    ]


RECORDS = [
    *rows("a", 1, 0, {"x": (0.4, 0.6), "y": (0.2, None)}),
    *rows("a", 1, 1, {"x": (0.7, 0.7), "y": (0.5, 0.5)}),
    *rows("b", 1, 0, {"x": (0.3, 0.3), "y": (0.1, 0.1)}),
    *rows("b", 2, 0, {"x": (0.9, 0.9)}),
]


def test_means_are_over_organs_then_cases_and_the_deviation_over_seeds():
    scores = case_scores(RECORDS, "torsos")
    assert scores["a", 1, 0, "x"] == pytest.approx(0.5) and scores["a", 1, 0, "y"] == pytest.approx(0.2)
    mean, sd = mean_and_sd(scores, "a", 1)
    assert mean == pytest.approx((0.35 + 0.6) / 2) and sd == pytest.approx(0.25 / math.sqrt(2))
    assert mean_and_sd(scores, "b", 4) is None


def test_differences_are_paired_over_what_both_arms_have():
    found = paired(case_scores(RECORDS, "torsos"), "a", "b", 1)
    assert found.pairs == 2 and found.mean == pytest.approx((0.5 - 0.3 + 0.2 - 0.1) / 2) and math.isnan(found.sd)


def test_a_difference_has_the_deviation_of_the_seeds_means():
    seeds = [rows("a", 1, seed, {"x": (0.5 + gain,), "y": (0.5,)}) for seed, gain in enumerate((0.0, 0.1, 0.2))]
    seeds += [rows("b", 1, seed, {"x": (0.4,), "y": (0.4,)}) for seed in range(3)]
    found = paired(case_scores(itertools.chain(*seeds), "torsos"), "a", "b", 1)
    assert found.mean == pytest.approx(0.15) and found.sd == pytest.approx(0.05)
    assert str(found).startswith("+15.0 ± 5.0 (p = ") and str(found).endswith("n = 6)")
    cases = [(0.5 + 0.01 * case, 0.4, str(case)) for case in range(12)]
    many = [row for a, b, case in cases for row in rows("a", 1, 0, {case: (a,)}) + rows("b", 1, 0, {case: (b,)})]
    assert paired(case_scores(many, "torsos"), "a", "b", 1).p < 0.001


def test_tables_have_a_row_for_each_arm_or_pair_that_was_run():
    lines = table(RECORDS, "torsos", ["b", "a"], [1, 2], "b").splitlines()
    assert lines[2].startswith("| b | 0.200 ± nan | 0.900 ± nan |  |  |")
    assert lines[3].startswith("| a | 0.475 ± 0.177 |  | +15.0 (p = ")
    lines = comparison_table(RECORDS, "torsos", [("a", "b"), ("a", "c")], [1, 2]).splitlines()
    assert len(lines) == 3 and lines[2].startswith("| a - b | +15.0 (p = ") and lines[2].endswith("|  |")


def test_iterations_to_reach_the_others_last_value():
    def run(arm, values):
        points = [{"iteration": 10 * (i + 1), "dice": value} for i, value in enumerate(values)]
        return {"task": "torsos", "arm": arm, "labels": 1, "milestones": points}

    runs = [run("slow", (0.1, 0.3, 0.5)), run("fast", (0.2, 0.6, 0.6)), run("never", (0.1, 0.1, 0.1))]
    assert iterations_to_reach(runs, "torsos", "fast", "slow", 1) == "20 of 30"
    assert iterations_to_reach(runs, "torsos", "never", "slow", 1) == "not within 30"
