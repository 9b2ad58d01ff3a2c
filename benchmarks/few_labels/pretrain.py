"""The pre-trained encoders of the study: CADS by its own command, its ablations, and the peers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from few_labels.arms import PRETRAININGS, Pretraining
from few_labels.peers.dira import DiRA
from few_labels.peers.masked_autoencoder import MaskedAutoencoder
from few_labels.peers.moco_v3 import MoCoV3
from few_labels.peers.training import pretrain_peer
from pretraining.config import PretrainConfig
from pretraining.method.pretrainer import Pretrainer
from pretraining.presets import PRESETS
from pretraining.run.estimate import flops_per_step
from pretraining.run.metrics import read_metrics
from pretraining.system.machine import peak_memory, reset_peak_memory
from pretraining.train import main as pretrain

PEERS = {"moco_v3": MoCoV3, "masked_autoencoder": MaskedAutoencoder, "dira": DiRA}


def pretrained_encoder(name: str, store: Path, runs: Path, settings: Mapping[str, Any]) -> Path:
    """Pre-train the encoder of this name, or resume; returns its file. What is finished is not done again.

    Args:
        name: in `PRETRAININGS`.
        store: what to train on.
        runs: folder of all runs.
        settings: of the recipe, on top of the preset `cads`.
    """
    run, method = runs / name, PRETRAININGS[name]
    encoder = run / "cads_encoder.pth"
    if encoder.exists():
        return encoder
    config = study_config(method, settings)
    reset_peak_memory(torch.device("cpu"))
    if method.method in PEERS:
        torch.manual_seed(config.run.seed)
        pretrain_peer(PEERS[method.method](), store, config, run)
    else:
        begun = (run / "config.json").exists()
        length = {"epochs": config.optim.epochs, "warmup_epochs": config.optim.warmup_epochs}
        flags = ["--c"] if begun else ["--preset", "cads", *_flags({**settings, **method.changes, **length})]
        code = pretrain([str(store), str(run), *flags])
        if code:
            raise RuntimeError(f"cads_pretrain of {name} ended with exit code {code}; its run is {run}")
    cost = {"peak_memory_bytes": peak_memory(torch.device("cpu")), "batch_size": config.optim.batch_size}
    (run / "study.json").write_text(json.dumps(cost), encoding="utf-8")
    return encoder


def pretraining_cost(name: str, runs: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """FLOPs, seconds and peak memory of a finished pre-training; FLOPs are counted anew on noise."""
    run, method = runs / name, PRETRAININGS[name]
    cost = json.loads((run / "study.json").read_text(encoding="utf-8"))
    if method.method in PEERS:
        seconds = json.loads((run / "cost.json").read_text(encoding="utf-8"))["seconds_per_sample"]
    else:
        lines = read_metrics(run / "metrics.jsonl")
        seconds = sum(1 / line["samples_per_second"] for line in lines) / len(lines)
    return {
        "gflop_per_sample": flops_per_sample(method.method, _recipe_of(method, settings)) / 1e9,
        "seconds_per_sample": seconds,
        "peak_memory_bytes": cost["peak_memory_bytes"],
    }


def study_config(method: Pretraining, settings: Mapping[str, Any]) -> PretrainConfig:
    """The recipe with a method's changes; at equal FLOPs, as many epochs as CADS's pay for, with a warm-up."""
    config = _recipe_of(method, settings)
    if not method.equal_flops:
        return config
    cads = Pretraining()
    share = flops_per_sample(cads.method, _recipe_of(cads, settings)) / flops_per_sample(method.method, config)
    epochs, warmup = max(round(share * config.optim.epochs), 1), math.ceil(share * config.optim.warmup_epochs)
    return config.replace(epochs=epochs, warmup_epochs=warmup)


def _recipe_of(method: Pretraining, settings: Mapping[str, Any]) -> PretrainConfig:
    return PretrainConfig().replace(**{**PRESETS["cads"], **settings, **method.changes})


def flops_per_sample(method: str, config: PretrainConfig) -> float:
    """Of a training step, divided by its batch; counted on noise. ``method``: "cads", or one of `PEERS`."""
    if method == "cads":
        return flops_per_step(Pretrainer(config, 1, torch.device("cpu"))) / config.optim.batch_size
    peer = PEERS[method]()
    depth, height, width = config.view.crop_size
    views = torch.randn(2, 2, 1, depth, height, width).unbind()  # batch normalisation needs two samples
    return peer.step_flops(*views) / 2


def _flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as flags of cads_pretrain."""
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags
