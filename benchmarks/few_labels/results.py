"""The study's results file, small enough for version control: scores as columns of integers, one line for each run."""

import json
import math
from pathlib import Path
from typing import Any

from pretraining.system.files import atomic_path, write_json

RUN = ("task", "arm", "labels", "seed")
SCORES = {"dice": 10**6, "nsd": 10**4}
"""What is scored, and what of it is 1 in the file. Dice has the digits that intervals need."""
DIGITS = 8
"""Of all else that was measured."""

Runs = list[dict[str, Any]]
"""Fine-tunings: `RUN`, ``scores`` [{case, organ, dice, nsd}], ``milestones`` and ``cost``."""


def run_name(task: str, arm: str, labels: int, seed: int) -> str:
    """File name of a fine-tuning's results."""
    return f"{task}__{arm}__{labels}__{seed}.json"


def read_runs(finetuned: Path) -> Runs:
    """All finished fine-tunings."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(finetuned.glob("*.json"))]


def write_results(path: Path, runs: Runs, measured: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write the results file.

    Args:
        path: of the file.
        runs: all fine-tunings; training losses (``curve``) are left out.
        measured: what else was measured, rounded like the scores.
        settings: kept as they are.
    """
    cases = list(dict.fromkeys(row["case"] for run in runs for row in run["scores"]))
    organs = {run["task"]: list(dict.fromkeys(row["organ"] for row in run["scores"])) for run in runs}
    content = {"cases": cases, "organs": organs, **_rounded(measured), **settings}
    lines = [json.dumps(_packed(run, cases, organs[run["task"]]), separators=(",", ":")) for run in runs]
    text = json.dumps(content, separators=(",", ":"))
    with atomic_path(path) as temporary:
        temporary.write_text(f'{text[:-1]},\n"runs":[\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results file; ``runs`` as `read_runs` gives them, but for the training losses."""
    content = json.loads(path.read_text(encoding="utf-8"))
    cases, organs = content.pop("cases"), content.pop("organs")
    for run in content["runs"]:
        columns = [_unpacked(run.pop(name), unit) for name, unit in SCORES.items()]
        run["scores"] = [
            {"case": cases[case], "organ": organ, "dice": dice, "nsd": nsd}
            for case, *of_case in zip(run.pop("case"), *columns, strict=True)
            for organ, dice, nsd in zip(organs[run["task"]], *of_case, strict=True)
        ]
    return content


def restore(runs: Runs, finetuned: Path) -> None:
    """Write runs to where `read_runs` finds them, so that a study resumes on another machine; none is replaced."""
    for run in runs:
        path = finetuned / run_name(*(run[name] for name in RUN))
        if not path.exists():
            write_json(path, run)


def _packed(run: dict[str, Any], cases: list[str], organs: list[str]) -> dict[str, Any]:
    """A run with its scores as columns: the cases' places in ``cases``, and by case the scores of all organs."""
    rows = {(row["case"], row["organ"]): row for row in run["scores"]}
    shown = list(dict.fromkeys(row["case"] for row in run["scores"]))
    packed = _rounded({key: value for key, value in run.items() if key not in ("scores", "curve")})
    packed["case"] = [cases.index(case) for case in shown]
    for name, unit in SCORES.items():
        table = [[rows[case, organ][name] for organ in organs] for case in shown]
        packed[name] = [[None if _is_missing(value) else round(unit * value) for value in row] for row in table]
    return packed


def _unpacked(table: list[list[int | None]], unit: int) -> list[list[float | None]]:
    return [[None if value is None else value / unit for value in row] for row in table]


def _is_missing(score: float | None) -> bool:
    """Whether neither truth nor prediction has the organ."""
    return score is None or math.isnan(score)


def _rounded(value: Any) -> Any:
    """Nested lists and dicts with all floats rounded to `DIGITS` in all."""
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
