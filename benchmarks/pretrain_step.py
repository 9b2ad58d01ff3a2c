"""Time of a training step with our and with PyTorch's depthwise convolution, alternating in one run.

    python benchmarks/pretrain_step.py [--quick]

The last line is a JSON object of ratios, stock / ours.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

from nnunetv2_cads.network_architecture import pvt_v2
from nnunetv2_cads.network_architecture.depthwise import depthwise_conv3d
from pretraining.config import PretrainConfig
from pretraining.pretrainer import Pretrainer


def stock_depthwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """PyTorch's own operator."""
    return F.conv3d(x, weight, bias, padding=1, groups=x.shape[1])


def main() -> None:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 4 and 3 rounds instead of batch 16 and 5")
    quick = parser.parse_args().quick
    batch, rounds = (4, 3) if quick else (16, 5)
    config = PretrainConfig().replace(batch_size=batch, head_out_dim=4096 if quick else 60_000, warmup_epochs=0)
    depthwise = {"stock": stock_depthwise, "ours": depthwise_conv3d}
    sides = {name: Pretrainer(config, 10, torch.device("cpu")) for name in depthwise}
    views = [torch.randn(batch, 1, 16, 48, 48), torch.randn(batch, 1, 16, 48, 48), torch.randn(batch, 1, 96, 96)]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds + 1):  # the first round warms up
        for name, side in sides.items():
            pvt_v2.depthwise_conv3d = depthwise[name]
            torch.manual_seed(i)
            start = time.perf_counter()
            losses[name].append(side.train_step(*views).loss.item())
            if i:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"batch {batch}, K {config.model.head_out_dim}, {torch.get_num_threads()} threads, {rounds} rounds")
    print("| side | median step, s | samples/s |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {batch / median:.1f} |")
    difference = max(abs(a / b - 1) for a, b in zip(losses["ours"], losses["stock"], strict=True))
    print(f"largest relative difference of the losses: {difference:.1e}")
    print(json.dumps({"step_fp32": round(medians["stock"] / medians["ours"], 2)}))


if __name__ == "__main__":
    main()
