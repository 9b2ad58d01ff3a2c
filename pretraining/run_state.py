"""What a checkpoint must look like before anything of it is used: the run's own state, tensor by tensor."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nnunetv2_cads.network_architecture.checkpoint_files import CheckpointFileError, check_tensor
from pretraining.optimisation import GROUP_SETTINGS
from pretraining.pretrainer import Pretrainer

_MOMENTS = {"exp_avg", "exp_avg_sq"}


def check_run_state(state: Mapping[str, Any], pretrainer: Pretrainer) -> None:
    """Raise `CheckpointFileError` unless every tensor is there with the name, type and shape that the run has.

    PyTorch's own loading compares names and shapes of weights, but converts types, and looks at nothing in an
    optimizer.
    """
    for part in ("student", "teacher"):
        _compare(part, state[part], getattr(pretrainer, part).state_dict())
    _compare("center", {"": state["center"]}, {"": pretrainer.center})
    step = state["step"]
    if type(step) is not int or not 0 <= step <= pretrainer.total_steps:
        raise CheckpointFileError(f"has step {step!r:.40}, but the run has {pretrainer.total_steps}")
    _check_optimizer(state["optimizer"], pretrainer.optimizer)
    if any(type(value) not in (int, float) for value in state["scaler"].values()):
        raise CheckpointFileError("has a loss scaler that holds more than numbers")


def _check_optimizer(state: Mapping[str, Any], own: torch.optim.Optimizer) -> None:
    """AdamW's groups, and its two moments and step for each weight that it has updated."""
    groups, expected = state["param_groups"], own.state_dict()["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in expected]:
        raise CheckpointFileError("has other groups of weights in 'optimizer'")
    for group in groups:
        if not group.keys() >= set(GROUP_SETTINGS) or any(isinstance(value, Tensor) for value in group.values()):
            raise CheckpointFileError("has other settings in 'optimizer'")
    weights = [weight for group in own.param_groups for weight in group["params"]]
    for index, entry in state["state"].items():
        moments = dict.fromkeys(_MOMENTS, weights[index]) | {"step": torch.zeros(())}
        _compare(f"optimizer {index}", entry, moments)


def _compare(part: str, found: Mapping[str, Any], expected: Mapping[str, Tensor]) -> None:
    """Names, types and shapes of one part of the state."""
    if found.keys() != expected.keys():
        names = sorted(map(str, found.keys() ^ expected.keys()))
        raise CheckpointFileError(f"has missing or unexpected entries in '{part}' (first: {names[0][:80]})")
    for key, own in expected.items():
        name = f"{part} {key}".strip()
        value = _tensor(name, found[key], own)
        if value.shape != own.shape or value.dtype != own.dtype:
            raise CheckpointFileError(
                f"has {value.dtype} {tuple(value.shape)} under '{name}', the run has {own.dtype} {tuple(own.shape)}"
            )


def _tensor(name: str, value: Any, own: Tensor) -> Tensor:
    """The checked tensor; counters, which are whole numbers, have no NaN to look for."""
    if own.is_floating_point():
        return check_tensor(name, value)
    if type(value) is not Tensor or value.layout != torch.strided or value.device.type != "cpu":
        raise CheckpointFileError(f"has no ordinary tensor under '{name}'")
    return value
