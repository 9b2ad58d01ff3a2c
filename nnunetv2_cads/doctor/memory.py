"""`cads_doctor`'s checks of memory: what the GPU and the machine have, and what a training with the plans takes."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from nnunetv2_cads.doctor.finding import OK, WARNING, Finding

NOT_PLANS = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""Exceptions raised by a file that is not a plans file."""
DEFAULT_NETWORK = "PVT-UNet"
GB = 2**30
PLANNED_GB = 8
"""What `cads_plan_and_preprocess` plans for by default."""

LEAST_RAM_GB = 4
"""With less, nnU-Net's twelve loader processes leave no memory for the training; chosen, not measured."""


def plan_command(plans_file: Path | None, *flags: object) -> str:
    """The command that plans the data set of a plans file again; empty if its ID is not in the path."""
    found = re.search(r"Dataset(\d+)", plans_file.as_posix()) if plans_file else None
    if not found:
        return ""
    try:
        network = _planned_network(json.loads(plans_file.read_text(encoding="utf-8")))
    except NOT_PLANS:
        network = DEFAULT_NETWORK
    if network != DEFAULT_NETWORK:
        flags = (*flags, "--network", network)
    return " ".join(["cads_plan_and_preprocess -d", str(int(found[1])), *map(str, flags)])


def _planned_network(plans: dict) -> str:
    """The network whose memory was planned for; nnU-Net's own plans do not say, and are compared with the default's."""
    return plans.get("cads", {}).get("network", DEFAULT_NETWORK)


def memory_needed(plans_file: Path | None, half_precision: bool) -> dict[str, int]:
    """Estimated bytes of a training step by configuration; empty without readable plans and their dataset.json."""
    from nnunetv2_cads.experiment_planning.memory_estimate import training_bytes

    try:
        plans, dataset = (json.loads(file.read_text(encoding="utf-8")) for file in _plans_and_dataset(plans_file))
        network = _planned_network(plans)
        return {
            name: training_bytes(
                configuration["patch_size"],
                configuration["batch_size"],
                len(configuration["normalization_schemes"]),
                len(dataset["labels"]),
                half_precision,
                network,
            )
            for name, configuration in plans["configurations"].items()
            if "inherits_from" not in configuration
        }
    except NOT_PLANS:
        return {}  # another check reports what is wrong with the plans


def _plans_and_dataset(plans_file: Path | None) -> tuple[Path, Path]:
    if plans_file is None:
        raise FileNotFoundError
    return plans_file, plans_file.with_name("dataset.json")


def gpu_findings(name: str, free: int, total: int, needed: Mapping[str, int], plans_file: Path | None) -> list[Finding]:
    """Whether a GPU has the memory that trainings need.

    Args:
        name: of the GPU.
        free: bytes.
        total: bytes.
        needed: bytes by configuration.
        plans_file: of these configurations.
    """
    text = f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free"
    target = max(1, int(free / GB))
    findings = []
    for configuration, size in needed.items():
        if size > free:
            short = f"{text}; {configuration} takes about {size / GB:.1f} GB (estimated, half precision)"
            findings.append(Finding(WARNING, short, plan_command(plans_file, "-gpu_memory_target", target)))
    if not findings and not needed and free < PLANNED_GB * GB:
        advice = f"{text}, but plans are made for {PLANNED_GB} by default; plan with -gpu_memory_target {target}"
        findings.append(Finding(WARNING, advice, plan_command(plans_file, "-gpu_memory_target", target)))
    return findings or [Finding(OK, text)]


def ram_findings(available: int, needed: Mapping[str, int]) -> list[Finding]:
    """Whether the machine has what a training on the CPU needs (``needed``: bytes by configuration, or none)."""
    text = f"{available / GB:.1f} GB available"
    findings = [
        Finding(WARNING, f"{text}; {name} on the CPU takes about {size / GB:.1f} GB (estimated) and its data")
        for name, size in needed.items()
        if size > available
    ]
    if available < LEAST_RAM_GB * GB:
        loaders = f"{text}; nnU-Net starts 12 loader processes unless nnUNet_n_proc_DA is set"
        findings.append(Finding(WARNING, loaders, "export nnUNet_n_proc_DA=2"))
    return findings or [Finding(OK, text)]


def check_gpu(plans_file: Path | None) -> Iterator[Finding]:
    """The GPU, and whether its free memory suffices for the plans."""
    import torch

    if not torch.cuda.is_available():
        yield Finding(WARNING, f"none that torch {torch.__version__} can use; a training takes days on a CPU")
        return
    name = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    yield from gpu_findings(name, *torch.cuda.mem_get_info(), memory_needed(plans_file, True), plans_file)


def check_ram(plans_file: Path | None) -> Iterator[Finding]:
    """The machine's available memory; compared with the plans if trainings run on the CPU."""
    import torch

    from pretraining.system.machine import UNKNOWN_MEMORY, available_memory

    available = available_memory()
    if available == UNKNOWN_MEMORY:
        yield Finding(OK, "this system does not report how much is available")
        return
    yield from ram_findings(available, {} if torch.cuda.is_available() else memory_needed(plans_file, False))
