"""Does CADS pre-training help, and which part of it? The whole experiment, resumable at each run, on the CPU.

    python benchmarks/evidence.py FOLDER [--ct DIR] [--hours H] [--arms ...] [--quick] [--out docs/evidence]

Makes the archive, its store and the labelled tasks in FOLDER, pre-trains (CADS, its ablations, the peers), fine-tunes
every arm on every label budget and seed, scores on held-out cases, and writes `results.json`, `table.md` and
`evidence.png` to --out. Give the same command again to go on: finished pre-trainings and fine-tunings are kept, and a
pre-training that was stopped goes on where it was; fine-tunings in --out's `results.json` are taken over. Give it
several times at once, in as many shells, to share the work: each process takes what no other has (OMP_NUM_THREADS=1
gives each one core). With --hours, nothing new begins after so many hours, and the results so far are written.
--tables writes the results so far, and trains nothing. --quick is a test of the chain, with results in FOLDER.

docs/evidence.md says what came of it.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from few_labels.arms import ALL_BUDGETS, ARMS, COMPARISONS, DRAWN, FEW_BUDGETS, PRETRAININGS, SUPERVISED
from few_labels.data import DataSize, StudyFolder, make_archive, make_probe_store, make_torso_task
from few_labels.results import run_name
from few_labels.sharing import Piece, held, work_through
from few_labels.tasks import REAL_SOURCES, Fold, Task, real_task, torso_task

from nnunetv2_cads.demo.torsos.torso import TorsoConfig
from pretraining.config import PRESETS, PretrainConfig
from pretraining.probe import probe
from pretraining.system.files import write_json
from pretraining.system.machine import keep_freed_memory

RECIPE: dict[str, Any] = {
    "amp": "bf16",
    "batch_size": 32,
    "lr": 3.2e-3,
    "epoch_samples": 512,
    "epochs": 24,
    "warmup_epochs": 2,
}
"""What the pre-trainings have in common, on top of the preset `demo`."""
TORSOS = "torsos"
PROBES, RANDOM, RESULTS = "probes.json", "random", "results.json"
SCRATCH = "CADS_scratch"
MAIN_ARMS = ("nnUNetTrainer", "ResEncM", SCRATCH, "CADS")
"""The arms that are run first."""
REAL_ARMS = (*MAIN_ARMS, "CADS_no_sampling_2x_slow")
"""The arms that are run on the real scans, too."""


@dataclass(frozen=True)
class Size:
    """How large the experiment is."""

    data: DataSize = field(default_factory=DataSize)
    budgets: tuple[int, ...] = ALL_BUDGETS
    seeds: int = 3
    patch_size: tuple[int, int, int] = (16, 48, 48)
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
    recipe={
        **RECIPE,
        "batch_size": 2,
        "epoch_samples": 2,
        "epochs": 1,
        "warmup_epochs": 0,
        "num_workers": 0,
        "head_hidden_dim": 64,
    },
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
        self.earlier: dict[str, dict[str, Any]] = {"pretraining": {}, "probes": {}}  # of encoders made elsewhere
        for path in folder.nnunet_variables().values():
            Path(path).mkdir(parents=True, exist_ok=True)
        os.environ.update(folder.nnunet_variables(), nnUNet_def_n_proc="1")
        folder.finetuned.mkdir(exist_ok=True)

    def run(self, deadline: float) -> bool:
        """Do what is not done yet, until ``deadline`` (monotonic seconds). Returns whether all is done."""
        from few_labels.plans import plan_and_preprocess

        with held(self.folder.root / "data.lock", wait=True):
            make_archive(self.folder, self.size.data, self.ct_dir)
            make_probe_store(self.folder, self.size.data)
            tasks = [torso_task(self.folder, self.size.data, self.size.budgets, self.size.seeds)]
            if self.ct_dir:
                tasks += [real_task(name, self.ct_dir, self.folder) for name in REAL_SOURCES]
            for task in tasks:
                preprocessed = self.folder.nnunet("preprocessed")
                with contextlib.redirect_stdout(io.StringIO()):
                    plan_and_preprocess(task.dataset, preprocessed, self.size.patch_size, self.size.batch_size)
                task.write_splits(preprocessed)
        return work_through(list(self.pieces(tasks)), deadline)

    def pieces(self, tasks: list[Task]) -> Iterator[Piece]:
        """All work; what decides comes first: torsos, few labels, main arms. A pre-training precedes its first use."""
        runs = [
            (task, number, fold, name)
            for task in tasks
            for number, fold in enumerate(task.folds)
            for name in self.arms_of(task, fold)
        ]
        runs.sort(key=lambda run: (run[0] != tasks[0], run[2].labels not in FEW_BUDGETS, run[3] not in MAIN_ARMS))
        yield Piece(self.folder.runs / RANDOM / PROBES, functools.partial(self.probe, RANDOM))
        pretrained: set[str | None] = {None}
        for task, number, fold, name in runs:
            pretraining = ARMS[name].pretraining
            encoder = self.encoder_path(pretraining) if pretraining else None
            if pretraining not in pretrained:
                pretrained.add(pretraining)
                yield Piece(encoder, functools.partial(self.pretrain, pretraining, tasks[0]))
                yield Piece(encoder.with_name(PROBES), functools.partial(self.probe, pretraining), (encoder,))
            yield Piece(
                self.result_path(task, fold, name),
                functools.partial(self.finetune, task, number, name, encoder),
                (encoder,) if encoder else (),
            )

    def arms_of(self, task: Task, fold: Fold) -> list[str]:
        """The arms that a fold is run with."""
        if task.name != TORSOS:
            return [arm for arm in self.arms if arm in REAL_ARMS]
        return [arm for arm in self.arms if fold.labels in ARMS[arm].budgets]

    def encoder_path(self, name: str) -> Path:
        """What a pre-training hands on."""
        return self.folder.runs / name / "cads_encoder.pth"

    def result_path(self, task: Task, fold: Fold, name: str) -> Path:
        """What a fine-tuning writes."""
        return self.folder.finetuned / run_name(task.name, name, fold.labels, fold.seed)

    def pretrain(self, name: str, torsos: Task) -> None:
        """One pre-training; one that was stopped goes on.

        A supervised one is a training of `SCRATCH` on all labelled torsos, with a seed that no fine-tuning has: with
        its own, a fine-tuning's decoder would start from the weights that this encoder was taught together with.
        """
        from few_labels.pretrain import pretrained_encoder

        if PRETRAININGS[name].method != SUPERVISED:
            pretrained_encoder(name, self.folder.store, self.folder.runs, self.size.recipe)
            return
        number = max(range(len(torsos.folds)), key=lambda i: torsos.folds[i].labels)
        encoder = self.encoder_path(name)
        encoder.parent.mkdir(parents=True, exist_ok=True)
        self.train(torsos, number, self.size.seeds, SCRATCH, encoder.with_name("training.log"), encoder_out=encoder)

    def probe(self, name: str) -> None:
        """The probes of a pre-trained encoder, or of a random one."""
        dataset = make_torso_task(self.folder, self.size.data)
        view = PretrainConfig().replace(crop_size=PRESETS["demo"]["crop_size"]).view
        source = RANDOM if name == RANDOM else str(self.encoder_path(name))
        path = self.folder.runs / name / PROBES
        path.parent.mkdir(parents=True, exist_ok=True)
        found = probe(source, dataset, self.folder.probe_store, self.ct_dir, view)
        write_json(path, found | {"encoder": name})  # no path of this machine

    def finetune(self, task: Task, number: int, name: str, encoder: Path | None) -> None:
        """One fine-tuning of an arm on a fold, and its scores."""
        fold = task.folds[number]
        path = self.result_path(task, fold, name)
        result = self.train(task, number, fold.seed, name, path.with_suffix(".log"), encoder=encoder)
        write_json(path, {"task": task.name, "arm": name, "labels": fold.labels, "seed": fold.seed, **result})

    def train(
        self, task: Task, number: int, seed: int, name: str, log: Path, **encoders: Path | None
    ) -> dict[str, Any]:
        """Train an arm on a fold; what nnU-Net prints goes to a log.

        Args:
            task: what to segment.
            number: of the fold.
            seed: of weights, order and augmentation.
            name: of the arm.
            log: to write.
            encoders: `study.finetune.finetune`'s ``encoder`` and ``encoder_out``.

        Returns:
            Scores, curve and cost, as `study.finetune.finetune`.
        """
        from few_labels.finetune import Schedule, finetune
        from few_labels.plans import read_plans

        arm = ARMS[name]
        plans = read_plans(self.folder.nnunet("preprocessed") / task.dataset.name, arm.plans)
        dataset_json = json.loads((task.dataset / "dataset.json").read_text(encoding="utf-8"))
        schedule = Schedule(**self.size.schedule).times(arm.length)
        if arm.encoder_lr is not None:
            schedule = replace(schedule, encoder_lr=arm.encoder_lr)
        with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            return finetune(
                arm.trainer, plans, dataset_json, number, seed, schedule,
                task.test_cases(task.folds[number]), frozen=arm.frozen, **encoders,
            )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """All that the results depend on beside code and seeds, as JSON has it."""
        from few_labels.finetune import Schedule

        size = asdict(self.size) | {"schedule": asdict(Schedule(**self.size.schedule))}
        return json.loads(json.dumps({"recipe": size.pop("recipe"), "size": size}))

    def restore_results(self, out: Path) -> None:
        """Take over the fine-tunings in `results.json`; those from an encoder of another recipe are left out.

        Raises:
            SystemExit: it is of an experiment of another size, and would be lost.
        """
        from few_labels.results import restore

        path, settings = out / RESULTS, self.settings()
        if not path.exists():
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["size"] != settings["size"]:
            sys.exit(f"{path}: holds results of other data or another schedule; move it, or choose another --out")
        same_recipe = found["recipe"] == settings["recipe"]
        restore(found, self.folder.finetuned, [n for n, arm in ARMS.items() if same_recipe or not arm.pretraining])
        if same_recipe:
            self.earlier = {part: found[part] for part in self.earlier}

    def write_results(self, out: Path) -> None:
        """Write `results.json`, `table.md` and `evidence.png` of what is done so far."""
        from few_labels.figure import draw
        from few_labels.pretrain import pretraining_cost
        from few_labels.results import (
            collect,
            comparison_table,
            cost_table,
            iterations_to_reach,
            probe_table,
            table,
            write_rows,
        )

        records, runs = collect(self.folder.finetuned)
        done = [name for name in PRETRAININGS if (self.folder.runs / name / "study.json").exists()]
        costs = self.earlier["pretraining"] | {
            name: pretraining_cost(name, self.folder.runs, self.size.recipe) for name in done
        }
        out.mkdir(parents=True, exist_ok=True)
        found = {name: self.folder.runs / name / PROBES for name in (RANDOM, *PRETRAININGS)}
        probes = self.earlier["probes"] | {
            name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.exists()
        }
        content = {"records": records, "runs": runs, "pretraining": costs, "probes": probes}
        write_rows(out / RESULTS, {**content, **self.settings()})
        budgets = list(self.size.budgets)
        parts = [
            table(records, TORSOS, ARMS, budgets, SCRATCH),
            comparison_table(records, TORSOS, COMPARISONS, budgets),
        ]
        parts += [
            f"{name}\n\n" + table(records, name, REAL_ARMS, [source.slabs - 1], SCRATCH)
            for name, source in REAL_SOURCES.items()
            if any(row["task"] == name for row in records)
        ]
        parts += [
            f"Iterations to reach {SCRATCH}'s final Dice, {n} labelled: CADS "
            + iterations_to_reach(runs, TORSOS, "CADS", SCRATCH, n)
            for n in budgets
            if any((row["arm"], row["labels"]) == ("CADS", n) for row in records)
        ]
        of_torsos = [run for run in runs if run["task"] == TORSOS]  # all of one patch size
        text = "\n\n".join([*parts, cost_table(of_torsos, costs), probe_table(probes)]) + "\n"
        (out / "table.md").write_text(text, encoding="utf-8")
        draw(out / "evidence.png", records, runs, DRAWN, budgets)
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
    parser.add_argument("--out", type=Path, help="folder of the results (docs/evidence; with --quick FOLDER/results)")
    arguments = parser.parse_args(argv)
    kept = arguments.folder / "results" if arguments.quick else Path(__file__).parents[1] / "docs" / "evidence"
    out = arguments.out or kept
    deadline = time.monotonic() + 3600 * arguments.hours
    keep_freed_memory()
    folder = StudyFolder(arguments.folder.absolute())
    experiment = Experiment(folder, QUICK if arguments.quick else FULL, arguments.ct, arguments.arms)
    experiment.restore_results(out)
    finished = arguments.tables or experiment.run(deadline)
    experiment.write_results(out)
    if not finished:
        print("the time is over; give the same command again to go on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
