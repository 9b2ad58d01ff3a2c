"""The record of a run, ``metrics.jsonl``. What is drawn from it: `pretraining.run.pictures`."""

import json
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
        columns = _columns(self._pending[0])
        rows = torch.stack([torch.stack(list(_columns(result).values())) for result in self._pending]).double()
        means = dict(zip(columns, rows[finite].mean(0).tolist(), strict=True))
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


_HEALTH = ("teacher_entropy", "mutual_information", "view_agreement", "feature_spread", "feature_rank")
"""Names of `TeacherHealth`'s values in a line, in their order."""


def _columns(result: StepResult) -> dict[str, torch.Tensor]:
    """The values of a step by their names in a line; what the run has not is left out."""
    columns = {"loss": result.loss}
    columns |= {f"loss_stage{stage}": loss for stage, loss in enumerate(result.stage_losses, 1)}
    columns |= {f"loss_{name}": loss for name, loss in result.losses.items()}
    columns |= {f"points_found_{level}": fraction for level, fraction in result.points_found.items()}
    if result.health is not None:
        columns |= dict(zip(_HEALTH, result.health, strict=True))
    return columns | {"gradient_norm": torch.linalg.vector_norm(result.gradient_norms)}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, without a last line that a crash cut off."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
