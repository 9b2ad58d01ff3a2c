"""The few-labels benchmark: random weights and pre-trained encoders on head-and-neck CT of which few are labelled.

    cd benchmarks
    python -m few_labels.head_and_neck finetune FOLDER OPENKBP RECORDS [--questions curve rates baselines] [--hours H]
    python -m few_labels.head_and_neck pretrain FOLDER OPENKBP RECORDS [--name restoration] [--crops N] [--hours H]
    python -m few_labels.head_and_neck tables RECORDS

Give the same command again to resume: finished trainings are kept, and a pre-training resumes at its last checkpoint.
`finetune` given several times at once shares the work; OMP_NUM_THREADS=1 gives each process one core.

FOLDER takes data, plans, logs and pre-trainings; OPENKBP is the folder of the scans, with `index.json`; RECORDS takes
one JSON file for each training.
"""

import argparse
import sys
import time
from pathlib import Path

from few_labels.head_and_neck.trainings import QUESTIONS


def main(argv: list[str] | None = None) -> int:
    """The command."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "tables":
        from few_labels.head_and_neck.tables import print_tables

        print_tables(arguments.records)
        return 0
    from few_labels.data import StudyFolder
    from few_labels.head_and_neck.finetuning import Benchmark
    from pretraining.system.machine import keep_freed_memory

    keep_freed_memory()
    deadline = time.monotonic() + 3600 * arguments.hours
    benchmark = Benchmark(StudyFolder(arguments.folder.absolute()), arguments.openkbp, arguments.records)
    if arguments.command == "finetune":
        finished = benchmark.run([t for name in arguments.questions for t in QUESTIONS[name]], deadline)
    else:
        finished = _pretrain(benchmark, arguments, deadline)
    if not finished:
        print("the time is over; give the same command again to resume")
    return 0


def _pretrain(benchmark, arguments: argparse.Namespace, deadline: float) -> bool:
    from few_labels.head_and_neck.data import read_archive
    from few_labels.head_and_neck.restoration import RestorationConfig, pretrain

    benchmark.prepare()
    config = RestorationConfig(crops=arguments.crops)
    run = benchmark.folder.runs / arguments.name
    return pretrain(read_archive(benchmark.archive), run, config, deadline, arguments.resume_from)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    finetune, pretrain, tables = (commands.add_parser(name) for name in ("finetune", "pretrain", "tables"))
    for command in (finetune, pretrain):
        command.add_argument("folder", type=Path)
        command.add_argument("openkbp", type=Path)
    for command in (finetune, pretrain, tables):
        command.add_argument("records", type=Path)
    for command in (finetune, pretrain):
        command.add_argument("--hours", type=float, default=float("inf"), help="begin nothing after so many hours")
    finetune.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    pretrain.add_argument("--name", default="restoration", help="of the run, in FOLDER/runs")
    pretrain.add_argument("--crops", type=int, default=100_000, help="length; the rate falls over its last fifth")
    pretrain.add_argument("--resume-from", type=Path, help="a snapshot of another run, to end it at another length")
    return parser


if __name__ == "__main__":
    sys.exit(main())
