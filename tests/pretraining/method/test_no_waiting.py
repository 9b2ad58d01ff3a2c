"""A training step asks the device for no value: on a GPU, the host would wait there until all queued work is done.

Seen on the CPU, by the operators that a step calls; those that wait are the same on a GPU.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pretraining.method.pretrainer
from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.run.estimate import random_sample
from pretraining.run.metrics import MetricsLog

SMALL = {
    "encoder_size": "b0", "batch_size": 2, "epochs": 1, "warmup_epochs": 0, "crop_size": (16, 64, 64),
    "head_out_dim": 32, "head_hidden_dim": 32, "head_bottleneck_dim": 16,
}  # fmt: skip
RESTORATION = {"restoration_weight": 1.0, "restored_crop_size": (16, 32, 32)}
POINTS = {"point_weight": 1.0, "point_crop_size": (16, 32, 32), "point_count": 32}
RUNS = {
    "cads": {},
    "cads in two parts": {"accumulate": 2, "head_batch_norm": True},
    "restoration and places": {**RESTORATION, "token_weight": 0.5, "ray_weight": 0.25},
    "points": {**POINTS, "distillation_weight": 0.0},
}
WAITING = {"_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero", "unique_dim", "_unique2"}


class NothingIsRead(TorchDispatchMode):
    """Refuses operators whose result, or its shape, the host must know."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in WAITING or any(index is not None and index.dtype == torch.bool for index in indices):
            raise AssertionError(f"{operator} waits for the device")
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("amp", ["none", "fp16"])
@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_a_step_waits_for_nothing(settings, amp, tmp_path, monkeypatch):
    monkeypatch.setitem(pretraining.method.pretrainer._AUTOCAST_DTYPE, "fp16", None)  # the CPU takes a minute for it
    config = PretrainConfig().replace(**SMALL, **settings, amp=amp)
    pretrainer = Pretrainer(config, 4, torch.device("cpu"))
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, True)
    sample = random_sample(config, 2)
    pretrainer.train_step(*sample)  # AdamW makes its state in the first
    with NothingIsRead():
        for _ in range(2):
            log.add(pretrainer.train_step(*sample))
    assert pretrainer.step == 3 and log.write(2, 0)["loss"] > 0


def test_what_waits_is_seen():
    values = torch.arange(3.0)
    for read in (lambda: values[0].item(), lambda: values[values > 0], lambda: bool(values.any()), values.nonzero):
        with NothingIsRead(), pytest.raises(AssertionError, match="waits for the device"):
            read()
