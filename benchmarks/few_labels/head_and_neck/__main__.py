"""The few-labels benchmark: random weights and pre-trained encoders on head-and-neck CT of which few are labelled.

    cd benchmarks
    python -m few_labels.head_and_neck pretrain FOLDER OPENKBP NAME... [--hours H]
    python -m few_labels.head_and_neck tune FOLDER OPENKBP RECORDS [--hours H]
    python -m few_labels.head_and_neck compare FOLDER OPENKBP RECORDS [--starts START...] [--labels 1 2 8]
        [--seeds 0 1 2] [--iterations 600] [--window LOW HIGH] [--rates ENCODER DECODER]
        [--variants decay ...] [--question NAME] [--hours H]
    python -m few_labels.head_and_neck tables RECORDS [--json FILE] [--figure PNG]
    python -m few_labels.head_and_neck dataset FOLDER OPENKBP --window LOW HIGH

Give the same command again to resume: finished trainings are kept, and a pre-training resumes at its last checkpoint.
`tune` and `compare` given several times at once share the work; OMP_NUM_THREADS=1 gives each process one core.
`dataset` makes the same task as a data set for `cads_compare`, and prints its flags and nnU-Net's folders.

FOLDER takes data, plans, logs and pre-trainings; OPENKBP is the folder of the scans, with `index.json`; RECORDS takes
one JSON file for each training; NAME is of `pretrainings.py`; START is of `trainings.NETWORKS`, a NAME, or a run in
FOLDER/runs.
"""

import argparse
import sys
import time
from pathlib import Path

from few_labels.data import StudyFolder
from few_labels.head_and_neck.pretrainings import PRETRAININGS
from few_labels.head_and_neck.trainings import (
    BUDGETS,
    LENGTH,
    NETWORKS,
    RANDOM,
    RATES,
    SEEDS,
    TEST,
    TUNING,
    VARIANTS,
    WITH_DECODER,
    comparison,
)
from pretraining.run.folder import ENCODER


def start_of(folder: Path, name: str) -> str:
    """A start by name: a network, a pre-training, or a run that was put into FOLDER/runs."""
    run = name.removesuffix(WITH_DECODER)
    if name in NETWORKS or run in PRETRAININGS or (StudyFolder(folder).runs / run / ENCODER).exists():
        return name
    raise SystemExit(
        f"{name}: no such start; give a folder in FOLDER/runs, or one of {', '.join((*NETWORKS, *PRETRAININGS))}"
    )


def main(argv: list[str] | None = None) -> int:
    """The command."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "tables":
        from few_labels.head_and_neck.tables import print_tables

        print_tables(arguments.records, arguments.json, arguments.figure)
        return 0
    from few_labels.head_and_neck.benchmark import Benchmark
    from pretraining.system.machine import keep_freed_memory

    keep_freed_memory()
    deadline = time.monotonic() + 3600 * getattr(arguments, "hours", 0)
    benchmark = Benchmark(StudyFolder(arguments.folder.absolute()), arguments.openkbp)
    if arguments.command == "pretrain":
        for name in arguments.names:
            if time.monotonic() > deadline:
                break
            if code := benchmark.pretrain(name, deadline):
                return code
        return 0
    if arguments.command == "dataset":
        flags = benchmark.prepare_comparison(tuple(arguments.window))
        print(*(f"export {name}={path}" for name, path in benchmark.folder.nnunet_variables().items()), flags, sep="\n")
        return 0
    trainings = TUNING
    if arguments.command == "compare":
        starts = [start_of(arguments.folder, name) for name in arguments.starts]
        window = tuple(arguments.window) if arguments.window else None
        trainings = comparison(
            starts, arguments.labels, arguments.seeds, arguments.iterations, window, arguments.question,
            tuple(arguments.rates), arguments.variants,
        )  # fmt: skip
    if not benchmark.run(trainings, arguments.records, deadline):
        print("the time is over; give the same command again to resume")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    names = ("pretrain", "tune", "compare", "tables", "dataset")
    pretrain, tune, compare, tables, dataset = (commands.add_parser(name) for name in names)
    for command in (pretrain, tune, compare, dataset):
        command.add_argument("folder", type=Path)
        command.add_argument("openkbp", type=Path)
    for command in (pretrain, tune, compare):
        command.add_argument("--hours", type=float, default=float("inf"), help="begin nothing after so many hours")
    for command in (tune, compare, tables):
        command.add_argument("records", type=Path)
    pretrain.add_argument("names", metavar="NAME", nargs="+", choices=PRETRAININGS, help=", ".join(PRETRAININGS))
    dataset.add_argument("--window", nargs=2, type=float, metavar=("LOW", "HIGH"), required=True)
    tables.add_argument("--json", metavar="FILE", type=Path, help="write the gains to this file, too")
    tables.add_argument("--figure", metavar="PNG", type=Path, help="draw Dice by labelled cases and by iteration")
    compare.add_argument(
        "--starts",
        metavar="START",
        nargs="+",
        default=[RANDOM],
        help=f"{', '.join(NETWORKS)}, NAME, or NAME+decoder, which takes its decoder, too",
    )
    compare.add_argument("--labels", nargs="+", type=int, choices=BUDGETS, default=[1, 2, 8])
    compare.add_argument("--seeds", nargs="+", type=int, choices=range(SEEDS), default=[0, 1, 2])
    compare.add_argument("--iterations", type=int, default=LENGTH // 2)
    compare.add_argument(
        "--window", nargs=2, type=float, metavar=("LOW", "HIGH"), help="HU that the network sees; default: nnU-Net's"
    )
    compare.add_argument("--rates", nargs=2, type=float, metavar=("ENCODER", "DECODER"), default=RATES)
    compare.add_argument("--variants", nargs="+", choices=VARIANTS, default=[""], help="ways to fine-tune")
    compare.add_argument(
        "--question", default=TEST, help="what the trainings are for; all but 'test' score the validation cases alone"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
