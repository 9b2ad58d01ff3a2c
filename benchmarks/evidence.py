"""Does CADS pre-training help, and which part of it? The whole experiment, resumable at each run, on the CPU.

    python benchmarks/evidence.py FOLDER [--ct DIR] [--hours H] [--arms ...] [--quick] [--out docs/evidence]

Makes the archive, its store and the labelled tasks in FOLDER, pre-trains (CADS, its ablations, the peers), fine-tunes
every arm on every label budget and seed, scores on held-out cases, and writes `results.json`, `table.md` and
`evidence.png` to --out. Give the same command again to go on: finished pre-trainings and fine-tunings are kept, and a
pre-training that was stopped goes on where it was. With --hours, no new fine-tuning begins after so many hours, and
the results so far are written. --tables writes the results so far, and trains nothing. --quick is a test of the chain.

docs/evidence.md says what came of it.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from probes import probe
from study.arms import ALL_BUDGETS, ARMS, PRETRAININGS, Arm
from study.data import DataSize, StudyFolder, make_archive, make_probe_store, make_torso_task
from study.tasks import REAL_SOURCES, Fold, Task, real_task, torso_task

from nnunetv2_cads.demo.torso import TorsoConfig
from pretraining.config import PRESETS, PretrainConfig
from pretraining.files import write_json
from pretraining.memory import keep_freed_memory

RECIPE: dict[str, Any] = {
    "amp": "bf16",
    "batch_size": 16,
    "lr": 2.4e-2,
    "epoch_samples": 512,
    "epochs": 60,
}
"""What the pre-trainings have in common, on top of the preset `demo`."""
TORSOS = "torsos"
PROBES = "probes.json"
MAIN_ARMS = ("nnUNetTrainer", "ResEncM", "CADS_scratch", "CADS")
"""The arms that are run on the real scans, too."""


@dataclass(frozen=True)
class Size:
    """How large the experiment is."""

    data: DataSize = field(default_factory=DataSize)
    budgets: tuple[int, ...] = ALL_BUDGETS
    seeds: int = 3
    patch_size: tuple[int, int, int] = (16, 64, 64)
    batch_size: int = 2
    schedule: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=lambda: RECIPE)


FULL = Size()
QUICK = Size(
    data=DataSize(2, 1, 1, 2, TorsoConfig(body_scale=0.2, slice_spacing_mm=(2.0, 2.0), pixel_spacing_mm=(2.0, 2.0))),
    budgets=(1,),
    seeds=1,
    patch_size=(16, 32, 32),
    schedule={"epochs": 1, "iterations": 1, "milestones": ()},
    recipe={**RECIPE, "batch_size": 2, "epoch_samples": 2, "epochs": 1, "num_workers": 0, "head_hidden_dim": 64},
)


class Experiment:
    """One folder's experiment.

    Args:
        folder: of all files.
        size: of the experiment.
        ct_dir: folder of real CT; None leaves the real tasks out.
        arms: names of those to run.
    """

    def __init__(self, folder: StudyFolder, size: Size, ct_dir: Path | None, arms: list[str]) -> None:
        self.folder, self.size, self.ct_dir, self.arms = folder, size, ct_dir, arms
        for path in folder.nnunet_variables().values():
            Path(path).mkdir(parents=True, exist_ok=True)
        os.environ.update(folder.nnunet_variables(), nnUNet_def_n_proc="1")
        folder.finetuned.mkdir(exist_ok=True)

    def run(self, deadline: float) -> bool:
        """Do what is not done yet, until ``deadline`` (monotonic seconds). Returns whether all is done."""
        make_archive(self.folder, self.size.data, self.ct_dir)
        tasks = [torso_task(self.folder, self.size.data, self.size.budgets, self.size.seeds)]
        if self.ct_dir:
            tasks += [real_task(name, self.ct_dir, self.folder) for name in REAL_SOURCES]
        for task in tasks:
            for number, fold in enumerate(task.folds):
                for arm in self.arms_of(task, fold):
                    path = self.folder.finetuned / f"{task.name}__{arm}__{fold.labels}__{fold.seed}.json"
                    if path.exists():
                        continue
                    if time.monotonic() > deadline:
                        return False
                    write_json(path, self.finetune(task, number, fold, arm))
                    print(f"{time.strftime('%H:%M')} {path.stem}", flush=True)
        return True

    def arms_of(self, task: Task, fold: Fold) -> list[str]:
        """The arms that a fold is run with."""
        if task.name != TORSOS:
            return [arm for arm in self.arms if arm in MAIN_ARMS]
        return [arm for arm in self.arms if fold.labels in ARMS[arm].budgets]

    def finetune(self, task: Task, number: int, fold: Fold, name: str) -> dict[str, Any]:
        """One fine-tuning, its pre-training before it where that is not done yet; what nnU-Net prints goes to a log."""
        from study.finetune import Schedule, finetune
        from study.plans import plan_and_preprocess

        arm: Arm = ARMS[name]
        encoder = arm.pretraining and self.encoder(arm.pretraining)
        log = self.folder.finetuned / f"{task.name}__{name}__{fold.labels}__{fold.seed}.log"
        with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            plans = plan_and_preprocess(
                task.dataset, self.folder.nnunet("preprocessed"), self.size.patch_size, self.size.batch_size
            )
            task.write_splits(self.folder.nnunet("preprocessed"))
            result = finetune(
                arm.trainer, plans[arm.plans], json.loads((task.dataset / "dataset.json").read_text(encoding="utf-8")),
                number, fold.seed, Schedule(**self.size.schedule), task.test_cases(fold), encoder,
            )  # fmt: skip
        return {"task": task.name, "arm": name, "labels": fold.labels, "seed": fold.seed, **result}

    def encoder(self, name: str) -> Path:
        """The file of a pre-training, which is done or gone on with first."""
        from study.pretrain import pretrained_encoder

        return pretrained_encoder(name, self.folder.store, self.folder.runs, self.size.recipe)

    def probe_encoders(self) -> None:
        """Probe every finished pre-training that has not been probed, and a random encoder."""
        make_probe_store(self.folder, self.size.data)
        dataset = make_torso_task(self.folder, self.size.data)
        view = PretrainConfig().replace(crop_size=PRESETS["demo"]["crop_size"]).view
        for name in ("random", *PRETRAININGS):
            path, encoder = self.folder.runs / name / PROBES, self.folder.runs / name / "cads_encoder.pth"
            if not path.exists() and (name == "random" or encoder.exists()):
                path.parent.mkdir(parents=True, exist_ok=True)
                source = name if name == "random" else str(encoder)
                write_json(path, probe(source, dataset, self.folder.probe_store, self.ct_dir, view))

    def write_results(self, out: Path) -> None:
        """Write `results.json`, `table.md` and `evidence.png` of what is done so far."""
        from study.figure import draw
        from study.pretrain import pretraining_cost
        from study.results import collect, cost_table, iterations_to_reach, probe_table, table

        records, runs = collect(self.folder.finetuned)
        done = [name for name in PRETRAININGS if (self.folder.runs / name / "study.json").exists()]
        costs = {name: pretraining_cost(name, self.folder.runs, self.size.recipe) for name in done}
        out.mkdir(parents=True, exist_ok=True)
        settings = {"recipe": self.size.recipe, "size": asdict(self.size)}
        found = {name: self.folder.runs / name / PROBES for name in ("random", *PRETRAININGS)}
        probes = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.exists()}
        content = {"records": records, "runs": runs, "pretraining": costs, "probes": probes}
        write_json(out / "results.json", {**content, **settings})
        budgets = list(self.size.budgets)
        parts = [table(records, TORSOS, ARMS, budgets, "CADS_scratch")]
        parts += [
            f"{name}\n\n" + table(records, name, MAIN_ARMS, [source.slabs - 1], "CADS_scratch")
            for name, source in REAL_SOURCES.items()
            if any(row["task"] == name for row in records)
        ]
        parts += [
            f"Iterations to reach CADS_scratch's final Dice, {n} labelled: CADS "
            + iterations_to_reach(runs, TORSOS, "CADS", "CADS_scratch", n)
            for n in budgets
        ]
        text = "\n\n".join([*parts, cost_table(runs, costs), probe_table(probes)]) + "\n"
        (out / "table.md").write_text(text, encoding="utf-8")
        draw(out / "evidence.png", records, runs, ARMS, budgets)
        print(text)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="working folder; 6 GB")
    parser.add_argument("--ct", type=Path, help="folder of real CT (docs/evidence.md), with a folder `labelled`")
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin no fine-tuning after so many hours")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--quick", action="store_true", help="a test of the chain: nothing is learnt")
    parser.add_argument("--tables", action="store_true", help="write the results so far, and train nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "evidence")
    arguments = parser.parse_args(argv)
    deadline = time.monotonic() + 3600 * arguments.hours
    keep_freed_memory()
    folder = StudyFolder(arguments.folder.absolute())
    experiment = Experiment(folder, QUICK if arguments.quick else FULL, arguments.ct, arguments.arms)
    finished = arguments.tables or experiment.run(deadline)
    if not arguments.tables:
        experiment.probe_encoders()
    experiment.write_results(arguments.out)
    if not finished:
        print("the time is over; give the same command again to go on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
