"""Does CADS pre-training help, and which part of it? The whole study, on the CPU.

    python benchmarks/evidence.py FOLDER [--ct DIR] [--hours H] [--arms ...] [--quick] [--out docs/evidence]

Makes the archive, its store and the labelled tasks in FOLDER, pre-trains (CADS, its ablations, the peers), fine-tunes
every arm on every label budget and seed, scores on held-out cases, and writes `results.json`, `table.md`,
`evidence.png` and the torsos' rows of `summary.json` to --out.

The same command resumes: finished pre-trainings and fine-tunings are kept, an unfinished pre-training resumes from its
checkpoint, and fine-tunings in --out's `results.json` are taken over. Run it several times at once to share the work:
each process takes what no other has (OMP_NUM_THREADS=1 gives each one core). With --hours, nothing new begins after so
many hours, and the results so far are written. --tables writes the results so far, and trains nothing. --quick tries
the chain, with results in FOLDER.

docs/evidence.md says what came of it.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from few_labels.arms import ARMS, DRAWN, PRETRAININGS
from few_labels.data import StudyFolder
from few_labels.experiment import FULL, PROBES, QUICK, RANDOM, Experiment
from few_labels.figure import draw, lines_of_torsos
from few_labels.finetune import Schedule
from few_labels.pretrain import pretraining_cost
from few_labels.report import gains_of_torsos, report
from few_labels.results import read_results, read_runs, restore, write_results
from few_labels.summary import SUMMARY, write_summary
from few_labels.tasks import TORSOS

from pretraining.system.machine import keep_freed_memory

RESULTS = "results.json"


def restore_results(experiment: Experiment, path: Path) -> dict[str, Any]:
    """Take over the fine-tunings of a results file; those from an encoder of another recipe are left out.

    Returns:
        ``pretraining`` and ``probes`` of the encoders of the file, which may not be in this folder.

    Raises:
        SystemExit: it is of an experiment of another size, and would be lost.
    """
    if not path.exists():
        return {"pretraining": {}, "probes": {}}
    found, settings = read_results(path), experiment.size.settings()
    if found["size"] != settings["size"]:
        sys.exit(f"{path}: holds results of other data or another schedule; move it, or choose another --out")
    same_recipe = found["recipe"] == settings["recipe"]
    runs = [run for run in found["runs"] if same_recipe or not ARMS[run["arm"]].pretraining]
    restore(runs, experiment.folder.finetuned)
    return {part: found[part] if same_recipe else {} for part in ("pretraining", "probes")}


def write_all(experiment: Experiment, earlier: dict[str, Any], out: Path) -> None:
    """Write `results.json` of what is done so far, and from it `table.md`, `summary.json` and `evidence.png`."""
    runs_folder, size = experiment.folder.runs, experiment.size
    done = [name for name in PRETRAININGS if (runs_folder / name / "study.json").exists()]
    costs = {name: pretraining_cost(name, runs_folder, size.recipe) for name in done}
    files = {name: runs_folder / name / PROBES for name in (RANDOM, *PRETRAININGS)}
    probes = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.exists()}
    measured = {"pretraining": earlier["pretraining"] | costs, "probes": earlier["probes"] | probes}
    out.mkdir(parents=True, exist_ok=True)
    write_results(out / RESULTS, read_runs(experiment.folder.finetuned), measured, size.settings())
    results, budgets = read_results(out / RESULTS), list(size.budgets)
    text = report(results, budgets)
    (out / "table.md").write_text(text, encoding="utf-8")
    schedule = Schedule(**size.schedule)
    write_summary(out / SUMMARY, TORSOS, gains_of_torsos(results["runs"], schedule.epochs * schedule.iterations))
    draw(out / "evidence.png", lines_of_torsos(results["runs"], DRAWN, budgets), "torsos", budgets[0])
    print(text)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="working folder; 6 GB")
    parser.add_argument("--ct", type=Path, help="folder of real CT (docs/evidence.md), with a folder `labelled`")
    parser.add_argument("--hours", type=float, default=float("inf"), help="begin nothing new after so many hours")
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
    earlier = restore_results(experiment, out / RESULTS)
    finished = arguments.tables or experiment.run(deadline)
    write_all(experiment, earlier, out)
    if not finished:
        print("the time is over; the same command resumes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
