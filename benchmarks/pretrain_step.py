"""The training step: ours against the plain one, alternating in one run, each side in a process of its own.

    python benchmarks/pretrain_step.py [--quick]

The published sizes: views 16 x 48 x 48 and 96 x 96, batch 16, K = 60,000, float32 without stochastic depth; ours also
in bf16. Both sides start from the same weights. Memory is the peak of a process above what it needs to import PyTorch;
"above what must stay" also takes off weights, gradients, optimizer state and teacher.

The last line is a JSON object: plain / ours for `step_fp32` and `step_bf16`, ours / plain for `memory`, and
`conv_ceiling_share`, the share of the fastest 3D convolution measured here that our float32 step reaches.
"""

import argparse
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from turns import Answer, Turns, serve

from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.plain.step import PlainTrainer
from pretraining.run.estimate import flops_per_step, random_sample
from pretraining.system.machine import keep_freed_memory, peak_memory, reset_peak_memory, resident_memory

SIDES = ("plain", "ours", "ours_bf16")
CEILING = "ceiling"
CPU = torch.device("cpu")


def bytes_that_stay(trainer: Pretrainer | PlainTrainer) -> int:
    """Of weights, gradients, optimizer state, teacher and center."""
    student = list(trainer.student.parameters())
    tensors = [*student, *(p.grad for p in student if p.grad is not None), *trainer.teacher.parameters()]
    tensors += [value for state in trainer.optimizer.state.values() for value in state.values()]
    return sum(t.numel() * t.element_size() for t in [*tensors, trainer.center])


def be_side(side: str, config: PretrainConfig) -> None:
    """Be one side, and answer the number of a round, or `CEILING`."""
    imported = resident_memory()
    if side != "plain":
        keep_freed_memory()
    trainer = Pretrainer(config, 10, CPU)
    if side == "plain":
        ours, trainer = trainer, PlainTrainer(config, 10)
        trainer.student.load_state_dict(ours.student.state_dict())
        trainer.teacher.load_state_dict(ours.teacher.state_dict())
        del ours

    def answer(question: int | str) -> Answer:
        if question == CEILING:
            return {"flops": flops_per_step(trainer), "ceiling": convolution_ceiling()}
        if question == 1:
            reset_peak_memory(CPU)
        torch.manual_seed(question)
        views = random_sample(config, config.optim.batch_size)[:3]
        start = time.perf_counter()
        if side == "plain":
            loss = statistics.mean(trainer.train_step(*views))
        else:
            loss = trainer.train_step(*views).loss.item()
        seconds, peak = time.perf_counter() - start, peak_memory(CPU) - imported
        return {"seconds": seconds, "loss": loss, "peak": peak, "above": peak - bytes_that_stay(trainer)}

    serve(answer)


def convolution_ceiling() -> float:
    """FLOP/s of a large float32 3D convolution, channels last: the best of some."""
    x = torch.randn(4, 128, 24, 48, 48).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(128, 128, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        y = F.conv3d(x, weight, padding=1)
        seconds.append(time.perf_counter() - start)
    return 2 * 27 * 128 * y.numel() / min(seconds)


def main() -> None:
    """Start the sides, let them take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 7")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out-dim", type=int, default=60_000)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    config = PretrainConfig().replace(
        batch_size=arguments.batch, head_out_dim=arguments.out_dim, warmup_epochs=0, freeze_last_layer_epochs=0,
        drop_path_rate=0.0, amp="bf16" if arguments.side == "ours_bf16" else "none",
    )  # fmt: skip
    if arguments.side:
        be_side(arguments.side, config)
        return
    warm_up, rounds = 2, 3 if arguments.quick else 7
    with Turns(__file__, SIDES, sys.argv[1:]) as turns:
        answers = turns.rounds(warm_up, rounds)
        limit = turns.ask("ours", CEILING)
    seconds = {side: statistics.median(a["seconds"] for a in values[warm_up:]) for side, values in answers.items()}
    print(f"batch {arguments.batch}, K = {arguments.out_dim}, {torch.get_num_threads()} threads, {rounds} rounds")
    print("| side | step, s | samples/s | peak, GiB | above what must stay, GiB | loss against plain, relative |")
    print("|---|---|---|---|---|---|")
    for side, values in answers.items():
        peak, above = (max(a[key] for a in values) / 2**30 for key in ("peak", "above"))
        difference = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(values, answers["plain"], strict=True))
        print(
            f"| {side} | {seconds[side]:.2f} | {arguments.batch / seconds[side]:.1f} | {peak:.2f} | {above:.2f} "
            f"| {difference:.1e} |"
        )
    rate = limit["flops"] / seconds["ours"]
    print(f"{limit['flops'] / 1e9:.0f} GFLOP per step; ours {rate / 1e9:.0f} GFLOP/s, ", end="")
    print(f"convolution at its best {limit['ceiling'] / 1e9:.0f} GFLOP/s")
    above = {side: max(a["above"] for a in values) for side, values in answers.items()}
    ratios = {
        "step_fp32": seconds["plain"] / seconds["ours"],
        "step_bf16": seconds["plain"] / seconds["ours_bf16"],
        "memory": above["ours"] / above["plain"],
        "conv_ceiling_share": rate / limit["ceiling"],
    }
    print(json.dumps({key: round(value, 3) for key, value in ratios.items()}))


if __name__ == "__main__":
    main()
