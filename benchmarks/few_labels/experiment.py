"""The whole study: data, pre-trainings, fine-tunings and probes, resumable piece by piece."""

import contextlib
import functools
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from few_labels.arms import ALL_BUDGETS, ARMS, FEW_BUDGETS, MAIN_ARMS, PRETRAININGS, REAL_ARMS, SCRATCH, SUPERVISED
from few_labels.data import DataSize, StudyFolder, make_archive, make_probe_store, make_torso_task
from few_labels.finetune import Schedule, finetune
from few_labels.plans import plan_and_preprocess, plans_in_window, read_plans
from few_labels.pretrain import pretrained_encoder
from few_labels.probes import probe
from few_labels.results import run_name
from few_labels.sharing import Piece, held, work_through
from few_labels.tasks import REAL_SOURCES, TORSOS, Fold, Task, real_task, torso_task
from nnunetv2_cads.demo.torsos.torso import TorsoConfig
from pretraining.config import PretrainConfig
from pretraining.presets import PRESETS
from pretraining.system.files import write_json

RECIPE: dict[str, Any] = {
    "amp": "bf16",
    "batch_size": 32,
    "lr": 3.2e-3,
    "epoch_samples": 512,
    "epochs": 24,
    "warmup_epochs": 2,
}
"""What the pre-trainings have in common, on top of the preset `cads`."""
PROBES, RANDOM = "probes.json", "random"


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

    def settings(self) -> dict[str, Any]:
        """All that the results depend on beside code and seeds, as JSON has it."""
        size = asdict(self) | {"schedule": asdict(Schedule(**self.schedule))}
        return json.loads(json.dumps({"recipe": size.pop("recipe"), "size": size}))


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
        for path in folder.nnunet_variables().values():
            Path(path).mkdir(parents=True, exist_ok=True)
        os.environ.update(folder.nnunet_variables(), nnUNet_def_n_proc="1")
        folder.finetuned.mkdir(exist_ok=True)

    def run(self, deadline: float) -> bool:
        """Do what is not done yet, until ``deadline`` (monotonic seconds). Returns whether all is done."""
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
        """The encoder file that a pre-training writes."""
        return self.folder.runs / name / "cads_encoder.pth"

    def result_path(self, task: Task, fold: Fold, name: str) -> Path:
        """What a fine-tuning writes."""
        return self.folder.finetuned / run_name(task.name, name, fold.labels, fold.seed)

    def pretrain(self, name: str, torsos: Task) -> None:
        """One pre-training; one that was stopped resumes.

        A supervised one is a training of `SCRATCH` on all labelled torsos, with a seed that no fine-tuning has: with
        its own, a fine-tuning's decoder would start from the weights that this encoder was taught together with.
        """
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
        view = PretrainConfig().replace(crop_size=PRESETS["cads"]["crop_size"]).view
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
            encoders: `few_labels.finetune.finetune`'s ``encoder`` and ``encoder_out``.

        Returns:
            Scores, curve and cost, as `few_labels.finetune.finetune`.
        """
        arm = ARMS[name]
        preprocessed, plans_name = self.folder.nnunet("preprocessed"), arm.plans
        if arm.window:
            with held(self.folder.root / "data.lock", wait=True), contextlib.redirect_stdout(io.StringIO()):
                plans_name = plans_in_window(task.dataset, preprocessed, arm.window, arm.plans)
        plans = read_plans(preprocessed / task.dataset.name, plans_name)
        dataset_json = json.loads((task.dataset / "dataset.json").read_text(encoding="utf-8"))
        schedule = Schedule(**self.size.schedule).times(arm.length)
        if arm.encoder_lr is not None:
            schedule = replace(schedule, encoder_lr=arm.encoder_lr)
        with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            return finetune(
                arm.trainer, plans, dataset_json, number, seed, schedule,
                task.test_cases(task.folds[number]), frozen=arm.frozen, **encoders,
            )  # fmt: skip
