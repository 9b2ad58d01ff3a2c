"""Peak memory of a fine-tuning step, against the planner's estimate.

    python benchmarks/finetune_memory.py [--quick] [--device cuda] [--network CoTr]

Each case runs in a process of its own: the network, Dice and cross-entropy on its resolutions, backward, AdamW, two
steps (the optimizer's state exists from the second on). On the CPU in float32, the peak is that of the process above
what it holds after its imports; on a GPU in nnU-Net's float16 autocast, it is that of PyTorch's allocator.
`saved` counts what autograd keeps for the backward pass, in float32 and under bf16 autocast: their ratio says what
half precision spares, also where there is no GPU.

The last line is a JSON object: the largest relative error of the estimate, and the mean ratio of the saved bytes.
"""

import argparse

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from tables import EXACT_MALLOC, heading, in_new_process, print_json, row
from torch import Tensor, nn

from nnunetv2_cads.experiment_planning.memory_estimate import training_bytes
from nnunetv2_cads.network_architecture import CoTr, PVTUNet, pvt_v2
from pretraining.system.machine import peak_memory, reset_peak_memory, resident_memory

CASES = (  # patch, batch, input channels, classes
    ((16, 64, 64), 2, 1, 3),
    ((32, 96, 96), 2, 1, 3),
    ((32, 96, 96), 2, 1, 14),
    ((32, 96, 96), 2, 4, 14),
    ((32, 96, 96), 2, 1, 60),
    ((32, 128, 128), 2, 1, 14),
    ((48, 128, 128), 2, 1, 3),
    ((64, 64, 64), 4, 2, 5),
    ((48, 192, 192), 1, 1, 14),
    ((48, 192, 192), 2, 1, 14),
    ((128, 128), 4, 1, 3),
    ((192, 192), 4, 1, 3),
    ((256, 256), 4, 1, 3),
    ((256, 256), 12, 1, 14),
    ((512, 512), 6, 3, 5),
)
QUICK = (0, 1, 4, 5, 10)
NETWORKS = {"PVT-UNet": PVTUNet, "CoTr": CoTr}


def loss_function(outputs: int) -> nn.Module:
    """nnU-Net's Dice and cross-entropy, at every one of the resolutions but the coarsest, as its trainer builds it."""
    loss = DC_and_CE_loss(
        {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    weights = [2.0**-i for i in range(outputs - 1)]
    return DeepSupervisionWrapper(loss, [*(weight / sum(weights) for weight in weights), 0])


def measure(
    patch: tuple[int, ...],
    batch: int,
    channels: int,
    classes: int,
    device: torch.device,
    network_name: str = "PVT-UNet",
) -> dict[str, int]:
    """Peak bytes of two steps, and bytes kept for the backward pass in both precisions.

    The MLPs run as on a GPU, for which memory is planned; on a CPU they keep less.
    """
    pvt_v2.runs_in_parts = lambda tokens: False
    before = resident_memory()
    conv_op = nn.Conv2d if len(patch) == 2 else nn.Conv3d
    network = NETWORKS[network_name](channels, classes, conv_op).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    image = torch.randn(batch, channels, *patch, device=device)
    with torch.no_grad():
        sizes = [output.shape[2:] for output in network(image)]
    targets = [torch.randint(0, classes, (batch, 1, *size), device=device).float() for size in sizes]
    criterion = loss_function(len(sizes))

    def forward(amp: bool) -> Tensor:
        with torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16, enabled=amp):
            return criterion(network(image), targets)

    reset_peak_memory(device)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(forward(device.type == "cuda")).backward()
        scaler.step(optimizer)
        scaler.update()
    peak = peak_memory(device) - (0 if device.type == "cuda" else before)
    return {
        "peak": peak,
        "saved": saved_bytes(network, forward, False),
        "saved_half": saved_bytes(network, forward, True),
    }


def saved_bytes(network: nn.Module, forward, amp: bool) -> int:
    """Bytes that autograd keeps, each storage once, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x  # holding it keeps its address from being given away again
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = forward(amp)
    del loss
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def main() -> None:
    """Measure each case, compare with the estimate, print table and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five of the cases")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--network", default="PVT-UNet", choices=NETWORKS, help="CoTr has the cases of volumes alone")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    heads = ("patch", "batch", "channels", "classes", "peak, GiB", "estimate, GiB", "error", "saved, GiB")
    print(heading([*heads, "half / float32"]))
    errors, ratios = [], []
    for case in [CASES[i] for i in QUICK] if arguments.quick else CASES:
        patch, *sizes = case
        if arguments.network == "CoTr" and len(patch) == 2:
            continue
        answer = in_new_process(measure, *case, device, arguments.network, environment=EXACT_MALLOC).result()
        estimate = training_bytes(patch, *sizes, device.type == "cuda", arguments.network)
        errors.append(estimate / answer["peak"] - 1)
        ratios.append(answer["saved_half"] / answer["saved"])
        peak, estimated, saved = (f"{value / 2**30:.2f}" for value in (answer["peak"], estimate, answer["saved"]))
        size = " x ".join(map(str, patch))
        cells = [size, *map(str, sizes), peak, estimated, f"{errors[-1]:+.0%}", saved, f"{ratios[-1]:.2f}"]
        print(row(cells), flush=True)
    largest, mean = max(errors, key=abs), sum(ratios) / len(ratios)
    print_json({"largest_error": round(largest, 3), "saved_ratio": round(mean, 3)})


if __name__ == "__main__":
    main()
