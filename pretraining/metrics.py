"""The record of a run: ``metrics.jsonl`` and the picture drawn from it."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pretraining.files import atomic_path
from pretraining.pretrainer import StepResult


class MetricsLog:
    """Averages steps into lines and appends them to a file.

    Args:
        path: the file; lines from ``first_step`` on are dropped first, since a run that goes on writes them anew.
        first_step: the step that comes next.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        self.lines = [line for line in read_metrics(path) if line["step"] < first_step]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
        self._pending: list[StepResult] = []

    def add(self, result: StepResult) -> None:
        """Take one step's result; nothing is read from the device yet."""
        self._pending.append(result)

    def write(self, step: int, epoch: int, **extra: Any) -> dict[str, Any] | None:
        """Write the mean of the steps since the last line. Returns the line, or None when there were no steps.

        Args:
            step: last step that it covers.
            epoch: its epoch.
            extra: further values of the line.
        """
        if not self._pending:
            return None
        tables = torch.stack([_row(result) for result in self._pending]).double().mean(0).tolist()
        rates = self._pending[-1].rates
        line = {
            "step": step,
            "epoch": epoch,
            **dict(zip(_COLUMNS, tables, strict=True)),
            "lr": rates.lr,
            "weight_decay": rates.weight_decay,
            "teacher_momentum": rates.teacher_momentum,
            "teacher_temp": rates.teacher_temp,
            **extra,
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self._pending.clear()
        return line


_COLUMNS = (
    "loss", "loss_stage1", "loss_stage2", "loss_stage3", "loss_stage4",
    "teacher_entropy", "mutual_information", "view_agreement", "gradient_norm",
)  # fmt: skip


def _row(result: StepResult) -> torch.Tensor:
    scalars = [result.teacher_entropy, result.mutual_information, result.view_agreement]
    return torch.stack([result.loss, *result.levels, *scalars, torch.linalg.vector_norm(result.gradient_norms)])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line cut off by a crash is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def plot_progress(lines: Iterable[dict[str, Any]], out_dim: int, path: Path) -> None:
    """Draw loss, health and learning rate over the steps; a loss that stays at ln K means collapse."""
    lines = list(lines)
    steps = [line["step"] for line in lines]
    chance = math.log(out_dim)
    figure = Figure(figsize=(10, 9), layout="constrained")
    FigureCanvasAgg(figure)
    loss, health, rate = figure.subplots(3, 1, sharex=True)
    for stage in range(1, 5):
        loss.plot(steps, [line[f"loss_stage{stage}"] for line in lines], lw=0.8, label=f"stage {stage}")
    loss.plot(steps, [line["loss"] for line in lines], "k", label="total")
    loss.axhline(chance, color="grey", ls="--", label=f"chance: ln {out_dim}")
    loss.set_ylabel("loss")
    health.plot(steps, [line["teacher_entropy"] / chance for line in lines], label="teacher entropy / ln K")
    health.plot(steps, [line["mutual_information"] for line in lines], label="mutual information (nats)")
    health.plot(steps, [line["view_agreement"] for line in lines], label="agreement of the views")
    health.set_ylabel("health")
    rate.plot(steps, [line["lr"] for line in lines], label="learning rate")
    rate.set_xlabel("step")
    for axes in (loss, health, rate):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
