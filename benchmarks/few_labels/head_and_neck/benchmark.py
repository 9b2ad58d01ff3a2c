"""Pre-trains with the command, fine-tunes with the study's own code, and writes one record of each fine-tuning."""

import contextlib
import functools
import io
import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from few_labels.data import StudyFolder
from few_labels.finetune import Schedule, finetune
from few_labels.head_and_neck.cases import Split, read_split
from few_labels.head_and_neck.data import make_store, make_task, write_compared_dataset, write_dataset
from few_labels.head_and_neck.pretrainings import PRETRAININGS, config_of
from few_labels.head_and_neck.trainings import BUDGETS, EPOCH, NETWORKS, SEEDS, VARIANTS, WITH_DECODER, Training
from few_labels.peers.training import pretrain_peer
from few_labels.plans import plan_and_preprocess, plans_in_window, read_plans
from few_labels.pretrain import PEERS
from few_labels.sharing import Piece, held, work_through
from few_labels.tasks import Task
from pretraining.run.folder import CHECKPOINT, ENCODER
from pretraining.system.files import atomic_path
from pretraining.train import train

PATCH_SIZE = (24, 48, 48)
BATCH_SIZE = 2
LEAST_HOURS = 1e-9
"""Limit of a pre-training that saves after its next step; 0 would be none."""
MILESTONE_CASES = 8
"""Validation cases that are scored at milestones; at the end all are."""


class Benchmark:
    """One working folder's data and trainings.

    Args:
        folder: of data, plans and logs.
        openkbp: folder of the scans.
    """

    def __init__(self, folder: StudyFolder, openkbp: Path) -> None:
        self.folder, self.openkbp = folder, openkbp
        self.split: Split = read_split(openkbp)
        for path in folder.nnunet_variables().values():
            Path(path).mkdir(parents=True, exist_ok=True)
        os.environ.update(folder.nnunet_variables(), nnUNet_def_n_proc="1")

    def pretrain(self, name: str, deadline: float) -> int:
        """Begin or resume a pre-training, until its end or ``deadline`` (monotonic seconds); returns the exit code.

        A peer does not look at the deadline; when it is stopped, it resumes after its last finished epoch.
        """
        store = self.folder.root / "store_4mm"
        with held(self.folder.root / "data.lock", wait=True):
            make_store(self.openkbp, self.folder.root / "archive", store, self.split)
        pretraining, run = PRETRAININGS[name], self.folder.runs / name
        if pretraining.method in PEERS:
            config = config_of(pretraining.with_length())
            torch.manual_seed(config.run.seed)
            run.parent.mkdir(exist_ok=True)
            with held(run.with_suffix(".lock"), wait=True):
                pretrain_peer(PEERS[pretraining.method](), store, config, run)
            return 0
        hours = max((deadline - time.monotonic()) / 3600, LEAST_HOURS)
        limit = {"max_hours": hours if hours < math.inf else 0.0}
        return train(store, run, pretraining.with_length() | limit, resume=True)

    def prepare(self) -> Task:
        """Write the task, and plan; what exists is kept."""
        with held(self.folder.root / "data.lock", wait=True):
            dataset = write_dataset(self.openkbp, self.folder.nnunet("raw"), self.split)
            task = make_task(dataset, self.split, BUDGETS, SEEDS)
            preprocessed = self.folder.nnunet("preprocessed")
            with contextlib.redirect_stdout(io.StringIO()):
                plan_and_preprocess(dataset, preprocessed, PATCH_SIZE, BATCH_SIZE)
            task.write_splits(preprocessed)
        return task

    def prepare_comparison(self, window: tuple[float, float]) -> str:
        """Write and preprocess the data set for `cads_compare`, and the names of its test cases; what exists is kept.

        Returns:
            The flags of `cads_compare` that name them.
        """
        task, preprocessed = self.prepare(), self.folder.nnunet("preprocessed")
        with held(self.folder.root / "data.lock", wait=True), contextlib.redirect_stdout(io.StringIO()):
            dataset = write_compared_dataset(task.dataset, self.split)
            plan_and_preprocess(dataset, preprocessed, PATCH_SIZE, BATCH_SIZE)
            plans = plans_in_window(dataset, preprocessed, window)
        test = self.folder.root / "test.txt"
        test.write_text("\n".join(self.split.test) + "\n", encoding="utf-8")
        return f"-d {dataset.name[7:10]} -p {plans} --test {test}"

    def run(self, trainings: Iterable[Training], records: Path, deadline: float) -> bool:
        """Do what is not done, in order, until ``deadline`` (monotonic seconds). Returns whether all is done.

        Args:
            trainings: to do.
            records: folder of their records, one JSON file each.
            deadline: after which nothing is begun.
        """
        task = self.prepare()
        records.mkdir(parents=True, exist_ok=True)
        pieces = []
        for training in trainings:
            path = records / f"{training.name}.json"
            needs = () if training.start in NETWORKS else (self.files_of(training.start)[0],)
            pieces.append(Piece(path, functools.partial(self.finetune, task, training, path), needs))
        return work_through(pieces, deadline)

    def finetune(self, task: Task, training: Training, record: Path) -> None:
        """One training, and its record."""
        number = next(i for i, f in enumerate(task.folds) if (f.labels, f.seed) == (training.labels, training.seed))
        scored = set(self.split.validation) | (set(self.split.test) if training.tested else set())
        cases = {name: case for name, case in task.test_cases(task.folds[number]).items() if name in scored}
        encoder, decoder = (None, None) if training.start in NETWORKS else self.files_of(training.start)
        log = self.folder.root / "logs" / f"{training.name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            result = finetune(
                training.network.trainer,
                read_plans(self.folder.nnunet("preprocessed") / task.dataset.name, self.plans_of(task, training)),
                json.loads((task.dataset / "dataset.json").read_text(encoding="utf-8")),
                number,
                training.seed,
                schedule_of(training),
                cases,
                encoder=encoder,
                decoder=decoder,
                settings=VARIANTS[training.variant],
            )
        write_rows(record, self.record(task, training, number, result))

    def plans_of(self, task: Task, training: Training) -> str:
        """The name of a training's plans, whose data are preprocessed once."""
        if training.window is None:
            return training.network.plans
        with held(self.folder.root / "data.lock", wait=True):
            preprocessed = self.folder.nnunet("preprocessed")
            return plans_in_window(task.dataset, preprocessed, training.window, training.network.plans)

    def files_of(self, start: str) -> tuple[Path, Path | None]:
        """The encoder file of a pre-training, and for a start that has its decoder, too, the run's checkpoint."""
        run = self.folder.runs / start.removesuffix(WITH_DECODER)
        return run / ENCODER, run / CHECKPOINT if start.endswith(WITH_DECODER) else None

    def record(self, task: Task, training: Training, number: int, result: dict[str, Any]) -> dict[str, Any]:
        """All of a training that is kept; scores of validation and test apart from each other."""
        scores = result.pop("scores")
        parts = {"validation": self.split.validation, "test": self.split.test}
        return {
            "task": task.name,
            **asdict(training),
            "cases": task.folds[number].train,
            **{part: [row for row in scores if row["case"] in names] for part, names in parts.items()},
            **result,
        }


def schedule_of(training: Training) -> Schedule:
    """The study's schedule for a training; the first cases, which it scores at milestones, are of the validation."""
    return Schedule(
        epochs=training.iterations // EPOCH,
        iterations=EPOCH,
        milestones=tuple(iterations / training.iterations for iterations in training.milestones),
        milestone_cases=MILESTONE_CASES,
        decoder_lr=training.decoder_lr,
        encoder_lr=training.encoder_lr,
    )


def write_rows(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with one line for each element of its lists: a file that is kept under version control."""
    parts = []
    for key, value in content.items():
        lines = [json.dumps(row) for row in value] if isinstance(value, list) else []
        text = "[\n" + ",\n".join(lines) + "\n]" if lines else json.dumps(value)
        parts.append(f"{json.dumps(key)}: {text}")
    with atomic_path(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
