"""What a comparison found: ``report.html``, one page that needs no network, ``results.json`` and ``results.csv``."""

import base64
import csv
import html
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_cads.comparison.dataset import Dataset
from nnunetv2_cads.comparison.design import Design
from nnunetv2_cads.comparison.figures import dice_by_budget, gains_with_intervals, learning_curves
from nnunetv2_cads.comparison.folder import ComparisonFolder
from nnunetv2_cads.comparison.gains import Gain, Scores, case_scores, gain_over, mean_and_sd, sentence
from nnunetv2_cads.comparison.pictures import best_and_worst
from nnunetv2_cads.comparison.scores import organs_of, read_results, surface_tolerance_mm
from nnunetv2_cads.comparison.work import describe, failures, unfinished
from pretraining.system.files import atomic_path, write_json

PACKAGES = ("nnunetv2-cads", "nnunetv2", "torch", "numpy", "SimpleITK")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% } .answer li { font-size: 1.1rem } .warn { background: #fff4d6; padding: .5rem 1rem }
pre { white-space: pre-wrap; background: #f5f5f5; padding: .7rem }
"""


def write_report(folder: ComparisonFolder, design: Design, dataset: Dataset) -> list[str]:
    """Write the three files of what is finished so far.

    Args:
        folder: OUT.
        design: of the comparison; without its images, the page can be given away.
        dataset: that it is on.

    Returns:
        The answer in sentences.
    """
    results = read_results(folder.root / "results")
    gains = all_gains(results, design)
    sentences = [sentence(gain) for gain in gains]
    record = {"design": json.loads(folder.design.read_text(encoding="utf-8")), **provenance(design)}
    write_json(
        folder.root / "results.json",
        {**record, "answer": sentences, "gains": [asdict(gain) for gain in gains], "trainings": results},
    )
    _write_csv(folder, results)
    page = _page(folder, design, dataset, results, gains, record)
    with atomic_path(folder.root / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return sentences


def all_gains(results: Sequence[dict[str, Any]], design: Design) -> list[Gain]:
    """Of every arm over the first one at every budget, in Dice."""
    scores, baseline = case_scores(results, "dice"), design.arms[0].name
    pairs = [(arm.name, budget) for arm in design.arms[1:] for budget in design.budgets]
    return [gain for arm, budget in pairs if (gain := gain_over(scores, baseline, arm, budget, design.patients))]


def provenance(design: Design) -> dict[str, Any]:
    """Versions, and the checksum of each encoder file."""
    encoders = {arm.name: arm.sha256 for arm in design.arms if arm.sha256}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"encoder_sha256": encoders, "versions": {"python": platform.python_version(), **versions}}


def _write_csv(folder: ComparisonFolder, results: Sequence[dict[str, Any]]) -> None:
    columns = ("arm", "budget", "seed", "case", "organ", "dice", "nsd")
    with (
        atomic_path(folder.root / "results.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        table = csv.DictWriter(file, columns)
        table.writeheader()
        for result in results:
            training = {name: result[name] for name in columns[:3]}
            table.writerows(training | row for row in result["scores"])


def _page(
    folder: ComparisonFolder,
    design: Design,
    dataset: Dataset,
    results: Sequence[dict[str, Any]],
    gains: Sequence[Gain],
    record: dict[str, Any],
) -> str:
    arms, baseline = [arm.name for arm in design.arms], design.arms[0].name
    dice = case_scores(results, "dice")
    parts = [f"<h1>{html.escape(design.dataset)}: what a start adds to Dice</h1>"]
    parts.append(_notes(folder, design))
    if gains:
        items = "".join(f"<li>{html.escape(sentence(gain))}</li>" for gain in gains)
        parts.append(f'<ul class="answer">{items}</ul>')
    settings = f" Changed settings: {html.escape(', '.join(design.settings))}." if design.settings else ""
    parts.append(
        f"<p>The baseline is <b>{html.escape(baseline)}</b>. {len(design.test)} test cases are held out of all "
        f"trainings; each training has {design.epochs} epochs of {design.iterations} iterations.{settings} Smaller "
        "budgets are part of larger ones, and all arms of a seed learn from the same cases. The 95% intervals have the "
        "spread over seeds and over test cases in them.</p>"
    )
    if dice:
        budgets = [budget for budget in design.budgets if any(key[1] == budget for key in dice)]
        parts += [_section("Dice", _score_table(dice, arms, budgets, gains))]
        parts.append(_image(dice_by_budget(dice, arms), "svg+xml", "Dice by labelled cases"))
        if gains:
            parts.append(_image(gains_with_intervals(gains, arms), "svg+xml", "gains with intervals"))
        nsd = f"Normalised surface Dice ({surface_tolerance_mm(dataset):g} mm)"
        parts.append(_section(nsd, _score_table(case_scores(results, "nsd"), arms, budgets, ())))
        parts.append(_section("By organ", _organ_tables(results, design, dataset)))
        curves = (_image(learning_curves(results, arms, n), "svg+xml", f"curves, {n} labelled") for n in budgets)
        parts.append(_section("While training", "".join(curves)))
        parts.append(_section("Cost", _cost_table(results, arms)))
        if design.images:
            pictures = best_and_worst(folder, design, dataset, results)
            shown = "".join(f"<h3>{html.escape(title)}</h3>{_image(png, 'png', title)}" for title, png in pictures)
            parts.append(_section("Best and worst test cases", shown))
    parts.append(_section("Settings", f"<pre>{html.escape(json.dumps(_without_names(record), indent=1))}</pre>"))
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(design.dataset)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n{body}\n'
        "</body></html>\n"
    )


def _without_names(record: dict[str, Any]) -> dict[str, Any]:
    """The settings without names of cases, patients and folders: a page is given away more easily than a file."""
    design = {name: value for name, value in record["design"].items() if name not in ("patients", "test")}
    arms = [arm | {"encoder": arm["encoder"] and Path(arm["encoder"]).name} for arm in design["arms"]]
    return record | {"design": design | {"arms": arms}}


def _notes(folder: ComparisonFolder, design: Design) -> str:
    """What is not there yet, and what failed."""
    missing, failed = unfinished(folder, design), failures(folder, design)
    lines = [f"{len(missing)} of {len(list(design.trainings()))} trainings are not finished."] if missing else []
    for training, reason in failed.items():  # it may name a case
        lines.append(f"{describe(training)} failed{f': {reason}' if design.images else '; see failed/ in OUT'}")
    return "".join(f'<p class="warn">{html.escape(line)}</p>' for line in lines)


def _score_table(scores: Scores, arms: Sequence[str], budgets: Sequence[int], gains: Sequence[Gain]) -> str:
    of = {(gain.arm, gain.budget): gain for gain in gains}
    heads = ["arm", *(f"{n} labelled" for n in budgets)]
    if gains:
        heads += [f"gain, {n} labelled" for n in budgets]
    rows = []
    for arm in arms:
        row = [arm, *(_mean_and_spread(scores, arm, n) for n in budgets)]
        if gains:
            row += [_gain_cell(of.get((arm, n))) for n in budgets]
        rows.append(row)
    return _table(heads, rows)


def _mean_and_spread(scores: Scores, arm: str, budget: int) -> str:
    """Mean of the trainings, and the standard deviation between them where there are several."""
    found = mean_and_sd(scores, arm, budget)
    if found is None:
        return ""
    mean, sd = found
    return f"{mean:.3f}" if math.isnan(sd) else f"{mean:.3f} ± {sd:.3f}"


def _gain_cell(gain: Gain | None) -> str:
    if gain is None:
        return ""
    return f"{gain.gain:+.1f}{f' ({gain.span})' if gain.span else ''}, {gain.seeds_ahead} of {gain.seeds}"


def _organ_tables(results: Sequence[dict[str, Any]], design: Design, dataset: Dataset) -> str:
    organs, arms = list(organs_of(dataset.description)[0]), [arm.name for arm in design.arms]
    of_organ = {organ: case_scores(results, "dice", organ) for organ in organs}
    parts = []
    for budget in design.budgets:
        rows = [[arm, *(_mean_and_spread(of_organ[organ], arm, budget) for organ in organs)] for arm in arms]
        rows = [row for row in rows if any(row[1:])]
        if rows:
            parts.append(f"<h3>{budget} labelled: Dice</h3>" + _table(["arm", *organs], rows))
    return "".join(parts)


def _cost_table(results: Sequence[dict[str, Any]], arms: Sequence[str]) -> str:
    heads = ["arm", "parameters, M", "GFLOP per iteration", "s per iteration", "peak memory, GiB", "device"]
    rows = []
    for arm in arms:
        costs = [(r["cost"], r["device"]) for r in results if r["arm"] == arm]
        if costs:
            seconds = [cost["seconds_per_iteration"] for cost, _ in costs if cost["seconds_per_iteration"]]
            first, device = costs[0]
            rows.append(
                [
                    arm,
                    f"{first['parameters'] / 1e6:.1f}",
                    f"{first['flops_per_iteration'] / 1e9:.0f}",
                    f"{np.median(seconds):.2f}" if seconds else "",
                    f"{max(cost['peak_memory_bytes'] for cost, _ in costs) / 2**30:.1f}",
                    device,
                ]
            )
    return _table(heads, rows)


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(heads, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _section(title: str, body: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n{body}"


def _image(content: bytes, kind: str, text: str) -> str:
    encoded = base64.b64encode(content).decode("ascii")
    return f'<img alt="{html.escape(text)}" src="data:image/{kind};base64,{encoded}">'
