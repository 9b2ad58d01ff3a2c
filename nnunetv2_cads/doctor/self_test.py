"""`cads_doctor --self-test`: whether this machine computes what it should, in every precision, and how fast.

Each check is a line of the doctor's report: ok, slower than expected, or wrong, with the operator and the versions.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F

from nnunetv2_cads.doctor import known_step, operators
from nnunetv2_cads.doctor.finding import OK, PROBLEM, WARNING, Finding
from pretraining.method.pretrainer import Pretrainer
from pretraining.presets import PRESETS
from pretraining.run.estimate import flops_per_step, random_sample
from pretraining.system.devices import choose_device, prepare_device
from pretraining.system.machine import core_count

Check = Callable[[], Iterator[Finding]]

LIMITS = {
    "none": {"maps": 1e-4, "losses": 1e-4, "gradients": 5e-3, "weights": 5e-2},
    "fp16": {"maps": 2e-2, "losses": 5e-3, "gradients": 0.15, "weights": 0.5},
    "bf16": {"maps": 0.1, "losses": 1e-2, "gradients": 0.4, "weights": 0.8},
}
"""How far the worst tensor of a kind may be off, relative to its length. On a CPU with AVX-512 float32 is off by 2e-6,
4e-7, 4e-6 and 1e-3 (AdamW divides gradients that are next to nothing by their size), bf16 by 0.02, 1e-3, 0.14, 0.3."""
FINETUNING = {True: {"loss": 2e-2, "gradients": 0.4, "prediction": 0.1}, False: {"loss": 1e-4, "gradients": 1e-2,
              "prediction": 1e-3}}  # fmt: skip
"""By whether nnU-Net uses half precision, as on GPUs. Predictions are kept in half precision everywhere."""
EXPECTED_SHARE = 0.15
"""Of the device's fastest convolution, that a float32 step on a CPU should reach; it reaches 0.46 in batches of 16."""
NAMES = {"none": "float32", "bf16": "bf16", "fp16": "fp16"}
DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH, ROUNDS = 4, 3
SECONDS = 240
"""Limit for a process of its own."""


def self_tests(device_name: str) -> dict[str, Check]:
    """The checks of a device by name, in the order in which they run.

    Raises:
        UserError: there is no such device.
    """
    device = choose_device(device_name)
    prepare_device(device)
    precisions = ("none", "bf16") if device.type == "cpu" else ("none", "bf16", "fp16")  # no CPU is fast in fp16
    checks: dict[str, Check] = {"device": lambda: check_device(device)}
    for amp in precisions:
        checks[f"step, {NAMES[amp]}"] = lambda amp=amp: check_step(device, amp)
    checks["step, compiled"] = lambda: check_compiled(device)
    checks["operators"] = check_operators
    checks["two ranks"] = lambda: check_ranks(device)
    checks["fine-tuning"] = lambda: check_finetuning(device)
    for amp in precisions:
        checks[f"speed, {NAMES[amp]}"] = lambda amp=amp: check_speed(device, amp)
    return checks


def check_device(device: torch.device) -> Iterator[Finding]:
    """What computes, and the libraries that it computes with."""
    yield Finding(OK, f"{_name(device)}; {versions(device)}")


def check_step(device: torch.device, amp: str, compiled: bool = False) -> Iterator[Finding]:
    """A step of pre-training beside numbers of float64."""
    yield _judge(known_step.numbers_of_ours(device, amp, compiled), LIMITS[amp], device)


def check_compiled(device: torch.device) -> Iterator[Finding]:
    """The same by torch.compile, on GPUs: a CPU takes minutes for it."""
    if device.type != "cuda":
        yield Finding(OK, "not tried: compiling takes minutes here; --compile is for GPUs")
        return
    yield from check_step(device, "none", compiled=True)


def check_operators() -> Iterator[Finding]:
    """Our operators for the CPU beside PyTorch's in float64; the known faults of this PyTorch."""
    wrong = [
        f"{case.name}: {what} is {difference:.1e} off"
        for case in operators.CASES
        for what, difference in operators.differences(case).items()
        if not difference < (operators.BF16 if case.bf16 else operators.FLOAT32)
    ]
    cpu = torch.device("cpu")
    for text in wrong:
        yield Finding(PROBLEM, f"{text} ({versions(cpu)})", "pip install --upgrade torch")
    if not wrong:
        yield Finding(OK, f"{len(operators.CASES)} operators of ours for the CPU give what PyTorch's give in float64")
    for name, difference in operators.faults():
        if difference:
            yield Finding(OK, f"PyTorch {torch.__version__} has a fault that ours go around: {name}")


def check_ranks(device: torch.device) -> Iterator[Finding]:
    """The step on two ranks that torchrun starts, over gloo or NCCL."""
    devices = torch.cuda.device_count() if device.type == "cuda" else core_count() if device.type == "cpu" else 1
    if devices < 2:
        yield Finding(OK, "not tried: there is one device alone")
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "numbers.json")
        module = "nnunetv2_cads.doctor.known_step"
        _run(["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", module, str(out), device.type])
        yield _judge(known_step.read_numbers(out), LIMITS["none"], device)


def check_finetuning(device: torch.device) -> Iterator[Finding]:
    """A step and a prediction through nnU-Net beside float64 on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        found = json.loads(_run(["nnunetv2_cads.doctor.nnunet_step", str(device), folder]).splitlines()[-1])
    limits = FINETUNING[device.type == "cuda"]
    yield _report({name: (difference, "") for name, difference in found.items()}, limits, device)


def check_speed(device: torch.device, amp: str) -> Iterator[Finding]:
    """FLOP/s of a step of pre-training, and of the device's fastest convolution in the same precision."""
    config = known_step.config().replace(**PRESETS["cads"] | {"batch_size": BATCH, "num_workers": 0, "amp": amp})
    trainer = Pretrainer(config, steps_per_epoch=10, device=device)
    views = random_sample(config, BATCH)[:3]
    seconds = _seconds(lambda: trainer.train_step(*views), device)
    rate = flops_per_step(trainer) / seconds
    share = rate / convolution_flops(device, DTYPES[amp])
    text = f"{seconds:.2g} s for {BATCH} samples, {rate / 1e9:.0f} GFLOP/s, {share:.0%} of its fastest convolution"
    if device.type == "cpu" and amp == "none" and share < EXPECTED_SHARE:
        threads = torch.get_num_threads()
        advice = f"export OMP_NUM_THREADS={core_count()}" if threads != core_count() else ""
        yield Finding(WARNING, f"{text}, slower than expected: is something else running? ({threads} threads)", advice)
        return
    yield Finding(OK, text)


def convolution_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large 3D convolution, channels last: the best of some."""
    x, weight = (
        torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last_3d)
        for shape in ((2, 128, 16, 32, 32), (128, 128, 3, 3, 3))
    )
    return 2 * 27 * 128 * x.numel() / _seconds(lambda: F.conv3d(x, weight, padding=1), device)


def versions(device: torch.device) -> str:
    """What computes on a device, for a report of a fault."""
    parts = [f"PyTorch {torch.__version__}"]
    if device.type == "cuda":
        parts += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
    if device.type == "cpu":
        parts += [torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    return ", ".join(parts)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {core_count()} cores"


def _judge(found: known_step.Numbers, limits: Mapping[str, float], device: torch.device) -> Finding:
    return _report(known_step.differences(found, known_step.known_numbers()), limits, device)


def _report(worst: Mapping[str, tuple[float, str]], limits: Mapping[str, float], device: torch.device) -> Finding:
    """One line on how far off each kind is, and what is beyond its limit."""
    wrong = {kind: value for kind, value in worst.items() if not value[0] < limits[kind]}
    if not wrong:
        return Finding(OK, ", ".join(f"{kind} {difference:.0e}" for kind, (difference, _) in worst.items()) + " off")
    texts = [
        f"{kind} are {difference:.1e} off{f' ({name})' if name else ''}, at most {limits[kind]:g} is expected"
        for kind, (difference, name) in wrong.items()
    ]
    return Finding(PROBLEM, f"{'; '.join(texts)}; {versions(device)}", "pip install --upgrade torch")


def _run(module_and_arguments: list[str]) -> str:
    """Run a module in a process of its own; returns what it prints.

    Raises:
        RuntimeError: it has failed; the last line says why.
    """
    command = [sys.executable, "-m", *module_and_arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    if process.returncode:
        raise RuntimeError((process.stderr.strip().splitlines() or ["no message"])[-1])
    return process.stdout


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of the fastest of `ROUNDS` calls, after one that is not timed."""
    found = []
    for _ in range(ROUNDS + 1):
        _wait(device)
        started = time.perf_counter()
        function()
        _wait(device)
        found.append(time.perf_counter() - started)
    return min(found[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()
