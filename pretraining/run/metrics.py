"""The record of a run: ``metrics.jsonl`` and the picture drawn from it."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pretraining.method.diagnostics import StepResult
from pretraining.system.files import atomic_path


class MetricsLog:
    """Averages steps into lines and appends them to a file.

    Args:
        path: the file; lines from ``first_step`` on are dropped first, since a run that resumes writes them again.
        first_step: the step that comes next.
        writes: whether this process writes the file; of several ranks, one does.
    """

    def __init__(self, path: Path, first_step: int, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self.lines = [line for line in read_metrics(path) if line["step"] < first_step]
        if writes:
            with atomic_path(path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")
        self._pending: list[StepResult] = []

    def add(self, result: StepResult) -> None:
        """Take one step's result; nothing is read from the device yet."""
        self._pending.append(result)

    def write(self, step: int, epoch: int, **extra: Any) -> dict[str, Any] | None:
        """Write the mean of the steps since the last line; those that were not finite are counted, not averaged.

        Under fp16, gradients overflow now and then in steps that are healthy (`pretraining.method.diagnostics`):
        these are counted in ``overflowed_steps``, and ``gradient_norm`` is the mean of the others, or None.

        Args:
            step: last step that it covers.
            epoch: its epoch.
            extra: further values of the line.

        Returns:
            The line, or None where no step was finite: then the next line counts these.
        """
        finite = torch.stack([result.finite for result in self._pending]) if self._pending else torch.empty(0)
        if not finite.any():
            return None
        rows = torch.stack([_row(result) for result in self._pending]).double()
        means = dict(zip(_COLUMNS, rows[finite].mean(0).tolist(), strict=True))
        norms = rows[finite, -1]
        overflowed = ~norms.isfinite()
        means["gradient_norm"] = None if overflowed.all() else norms[~overflowed].mean().item()
        rates = self._pending[-1].rates
        line = {
            "step": step,
            "epoch": epoch,
            **means,
            "lr": rates.lr,
            "weight_decay": rates.weight_decay,
            "teacher_momentum": rates.teacher_momentum,
            "teacher_temp": rates.teacher_temp,
            "skipped_steps": len(rows) - int(finite.sum()),
            "overflowed_steps": int(overflowed.sum()),
            **extra,
        }
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self._pending.clear()
        return line


_COLUMNS = (
    "loss", "loss_stage1", "loss_stage2", "loss_stage3", "loss_stage4",
    "teacher_entropy", "mutual_information", "view_agreement", "feature_spread", "feature_rank", "gradient_norm",
)  # fmt: skip


def _row(result: StepResult) -> torch.Tensor:
    norm = torch.linalg.vector_norm(result.gradient_norms)
    return torch.stack([result.loss, *result.stage_losses, *result.health, norm])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, without a last line that a crash cut off."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def plot_progress(lines: Iterable[dict[str, Any]], out_dim: int, path: Path) -> None:
    """Draw loss, health and learning rate over the steps; a loss that stays at ln K means collapse."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # both load for half a second
    from matplotlib.figure import Figure

    lines = list(lines)
    steps = [line["step"] for line in lines]
    chance = math.log(out_dim)
    figure = Figure(figsize=(10, 13), layout="constrained")
    FigureCanvasAgg(figure)
    loss, health, rank, norm, rate = figure.subplots(5, 1, sharex=True)
    for stage in range(1, 5):
        loss.plot(steps, [line[f"loss_stage{stage}"] for line in lines], lw=0.8, label=f"stage {stage}")
    loss.plot(steps, [line["loss"] for line in lines], "k", label="total")
    loss.axhline(chance, color="grey", ls="--", label=f"chance: ln {out_dim}")
    loss.set_ylabel("loss")
    health.plot(steps, [line["teacher_entropy"] / chance for line in lines], label="teacher entropy / ln K")
    health.plot(steps, [line["mutual_information"] for line in lines], label="mutual information (nats)")
    health.plot(steps, [line["view_agreement"] for line in lines], label="agreement of the views")
    # runs begun by earlier versions have lines without the features
    health.plot(steps, [line.get("feature_spread", math.nan) for line in lines], label="spread of the features")
    health.set_ylabel("health")
    rank.plot(steps, [line.get("feature_rank", math.nan) for line in lines], label="effective rank of the features")
    rank.set_ylabel("rank")
    norms = [math.nan if line["gradient_norm"] is None else line["gradient_norm"] for line in lines]
    norm.plot(steps, norms, label="norm of the gradient before clipping")
    norm.set_yscale("log")
    norm.set_ylabel("gradient")
    rate.plot(steps, [line["lr"] for line in lines], label="learning rate")
    rate.set_xlabel("step")
    for axes in (loss, health, rank, norm, rate):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
