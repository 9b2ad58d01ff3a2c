"""What a sample of pre-training costs: CADS against other methods on the same encoder, in turns.

    python benchmarks/pretraining_cost.py [--preset published] [--batch 8] [--amp none] [--quick]

Whole training steps on noise of the views' shapes, one process per method. CADS sees two uniformly sampled views, a
quarter of the voxels each, and a radiograph; the peers see whole views, as their papers have it. CADS without uniform
sampling is another side, and so is the contrast of points, in pairs of crops as large as the views. Of DiRA, which has
two phases, the seconds are those of a step of each, weighted as they share a run. Memory is the peak of a process above
what it needs to import PyTorch.

The last line is a JSON object: each other side / CADS, for seconds, FLOPs and peak memory.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable

import torch
from few_labels.arms import PRETRAININGS
from few_labels.peers.training import PeerTrainer, phase_starts
from few_labels.pretrain import PEERS, flops_per_sample
from tables import markdown_table, print_json
from torch import Tensor
from turns import Answer, Turns, serve

from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.presets import PRESETS
from pretraining.run.estimate import random_sample
from pretraining.system.machine import keep_freed_memory, peak_memory, reset_peak_memory, resident_memory

SIDES = ("CADS", "CADS_no_sampling", "points", "MoCo_v3", "MAE", "DiRA")
CPU = torch.device("cpu")
WARM_UP = 1
STEPS_PER_EPOCH = 10


def side_config(name: str, common: dict) -> PretrainConfig:
    """What all sides share and what one changes, but its batch."""
    config = PretrainConfig().replace(**{**common, **PRETRAININGS[name].changes, "batch_size": common["batch_size"]})
    return config.replace(point_crop_size=config.view.crop_size)


def steps_of(method: str, config: PretrainConfig) -> list[tuple[float, Callable[..., float]]]:
    """For each phase of a method its share of a run, and a training step on a `Sample`, which returns the loss."""
    if method in PEERS:
        torch.manual_seed(config.run.seed)
        peer = PeerTrainer(PEERS[method](), config, STEPS_PER_EPOCH)

        def step(number: int, view_1: Tensor, view_2: Tensor, *_: object) -> float:
            peer.step = number
            return peer.train_step(view_1, view_2)

        shares = peer.method.phases
        steps = [functools.partial(step, start) for start in phase_starts(shares, peer.total_steps)]
        return list(zip(shares, steps, strict=True))
    trainer = Pretrainer(config, STEPS_PER_EPOCH, CPU)
    return [(1.0, lambda *sample: trainer.train_step(*sample).loss.item())]


def be_side(name: str, config: PretrainConfig) -> None:
    """Be one side, and answer the number of a round with what its step costs."""
    imported = resident_memory()
    keep_freed_memory()
    steps = steps_of(PRETRAININGS[name].method, config)

    def answer(number: int) -> Answer:
        if number == WARM_UP:
            reset_peak_memory(CPU)
        torch.manual_seed(number)
        sample = random_sample(config, config.optim.batch_size)
        seconds = 0.0
        for share, step in steps:
            start = time.perf_counter()
            step(*sample)
            seconds += share * (time.perf_counter() - start)
        return {"seconds": seconds, "peak": peak_memory(CPU) - imported}

    serve(answer)


def main() -> None:
    """Start the sides, let them take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("published", "cads"), default="published")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--amp", choices=("none", "bf16"), default="none")
    parser.add_argument("--quick", action="store_true", help="1 round instead of 5")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    common = {**PRESETS[arguments.preset], "batch_size": arguments.batch, "amp": arguments.amp, "warmup_epochs": 0}
    if arguments.side:
        be_side(arguments.side, side_config(arguments.side, common))
        return
    rounds = 1 if arguments.quick else 5
    with Turns(__file__, SIDES, sys.argv[1:]) as turns:
        answers = turns.rounds(WARM_UP, rounds)
    measured = {}
    for side, values in answers.items():
        timed = values[WARM_UP:]
        measured[side] = {
            "seconds": statistics.median(value["seconds"] for value in timed) / arguments.batch,
            "flops": flops_per_sample(PRETRAININGS[side].method, side_config(side, common)),
            "memory": max(value["peak"] for value in timed),
        }
    print(f"preset {arguments.preset}, batch {arguments.batch}, {arguments.amp}, {torch.get_num_threads()} threads")
    rows = [
        [side, f"{cost['seconds']:.3f}", f"{cost['flops'] / 1e9:.1f}", f"{cost['memory'] / 2**30:.2f}"]
        for side, cost in measured.items()
    ]
    print(markdown_table(["method", "s per sample", "GFLOP per sample", "peak, GiB"], rows))
    ratios = {
        side: {key: round(value / measured["CADS"][key], 2) for key, value in cost.items()}
        for side, cost in measured.items()
        if side != "CADS"
    }
    print_json(ratios)


if __name__ == "__main__":
    main()
